"""The product's, but for the address of the floor: see `bench.bare`."""

from agentfleet.settings import *  # noqa: F403

ROOT_URLCONF = "bench.bare"
