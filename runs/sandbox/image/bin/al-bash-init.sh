# Sourced before every command of the bash tool: the variables that earlier commands left, and a way to leave some.
setenv() {
  command setenv "$@" && . "${AL_ENV_FILE:-/tmp/env.sh}"
}

if [ -f "${AL_ENV_FILE:-/tmp/env.sh}" ]; then . "${AL_ENV_FILE:-/tmp/env.sh}"; fi
