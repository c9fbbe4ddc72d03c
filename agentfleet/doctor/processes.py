"""Redis, the port, and the processes of this home."""

from __future__ import annotations

import os
from contextlib import closing

import httpx

from agentfleet import background, children, own_redis, ports, up
from agentfleet.doctor.findings import PATIENCE, Place, Wrong
from agents import private_files


def look_at_redis(place: Place) -> str:
    url = os.environ.get("REDIS_URL")
    if not url:
        try:
            return f"{own_redis.redis_server()}, which `agentfleet up` starts"
        except children.CannotStart as error:
            raise Wrong(str(error)) from error
    import redis  # noqa: PLC0415 - only where it is asked

    try:
        with closing(redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        mend = f"see {place.log('redis')}" if "redis" in place.pids else "start it, or mend REDIS_URL"
        raise Wrong(f"it does not answer ({error}), and every step comes some seconds late: {mend}") from error
    return "it answers"


def look_at_port(place: Place) -> str:
    if place.is_up:
        return whose_answer(place)
    try:
        free = ports.port_is_free("127.0.0.1", place.port)
    except OSError as error:
        raise Wrong(f"port {place.port} cannot be had ({error.strerror}): choose another --port") from error
    if not free:
        raise Wrong(f"port {place.port} is in use by something else: stop it, or choose another --port")
    return f"{place.port} is free"


def whose_answer(place: Place) -> str:
    """Who takes the token of this home is this home's own."""
    known = private_files.read_json(place.home / "client.json")
    if not known:
        raise Wrong("agentfleet is starting up: look again in some seconds")
    url, headers = known["url"], {"Authorization": f"Bearer {known['token']}"}
    try:
        answer = httpx.get(f"{url}/api/v1/agents", headers=headers, timeout=PATIENCE, trust_env=False)
    except httpx.HTTPError as error:
        raise Wrong(f"{url} does not answer ({error}): see {place.log('web')}") from error
    if answer.status_code != httpx.codes.OK:
        raise Wrong(f"{url} does not take this home's token ({answer.status_code}): `agentfleet down`, then `up`")
    return f"{url} is served by this home's agentfleet"


def look_at_processes(place: Place) -> str:
    if not place.is_up and place.pids:
        raise Wrong("agentfleet ended without being told to: run `agentfleet up`, and the runs go on")
    if not place.is_up:
        return "agentfleet is not up: `agentfleet up` starts it"
    dead = [role for role in up.ROLES if background.started_at(place.pids.get(role, 0)) is None]
    if dead:
        logs = ", ".join(place.log(role) for role in dead)
        raise Wrong(f"{', '.join(dead)} not alive: see {logs}, then `agentfleet down` and `up`")
    return f"{', '.join(up.ROLES)} are alive"


def look_at_gateway(place: Place) -> str:
    """It listens where the worker's network is, if that has been made."""
    said = private_files.read_json(place.home / "gateway.json")
    if not said.get("addresses"):
        return "no sandbox has needed it yet"
    for address in said["addresses"]:
        url = f"http://[{address}]:{said['port']}" if ":" in address else f"http://{address}:{said['port']}"
        try:
            httpx.get(f"{url}/health", timeout=PATIENCE, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise Wrong(f"{url} does not answer ({error}), so no sandbox gets locks: {place.log('gateway')}") from error
    return f"it answers at {', '.join(said['addresses'])}, port {said['port']}"
