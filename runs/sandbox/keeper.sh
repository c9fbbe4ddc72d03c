# Runs one command at most once and lets anyone follow it. POSIX sh; needs setsid, tail, wc, head, sleep.
#
#   keeper.sh run  ID TIMEOUT LIMIT OFFSET STDIN_BYTES FORGET ARGV...
#   keeper.sh stop GRACE
#
# stdout: the command's output from OFFSET, raw.
# stderr, last line: "exit CODE [timeout|output] [signals]" or "lost" or "cut"; "signals": a signal file is there.
# Records, one directory a command: out, child (pid), why-REASON, exit-CODE. The last two are empty files, because
# making one still works when the output has filled the disk, and because it is atomic.
R=${AGENTFLEET_RECORDS:-/run/agentfleet}

stop() {
  n=$(($1 * 10))
  for d in "$R"/*/; do
    [ -e "$d/child" ] || continue
    read -r child <"$d/child"
    kill -s TERM -- "-$child" 2>/dev/null
  done
  for d in "$R"/*/; do
    [ -e "$d/child" ] || continue
    read -r child <"$d/child"
    while [ $n -gt 0 ] && kill -s 0 -- "-$child" 2>/dev/null; do
      n=$((n - 1))
      sleep 0.1
    done
  done
}

ended() {
  for f in "$d"/exit-*; do
    [ -e "$f" ] || continue
    why=
    for w in "$d"/why-*; do [ -e "$w" ] && why=${w##*-}; done
    signals=
    for s in exit rerun return; do [ -e "${AL_SIGNAL_DIR:-/tmp/signals}/$s" ] && signals=signals; done
    echo "exit ${f##*-} $why $signals" >&2
    exit
  done
}

# The command's deadline and its output limit, kept also when nobody follows. /proc/uptime: no fork, no clock jumps.
watch() {
  trap '' TERM
  read -r now _ </proc/uptime
  end=$((${now%.*} + timeout)) why=
  while [ -z "$why" ]; do
    sleep 0.25
    kill -s 0 "$child" 2>/dev/null || exit
    read -r now _ </proc/uptime
    [ "${now%.*}" -ge $end ] && why=timeout
    [ "$(wc -c <"$d/out")" -gt "$limit" ] && why=output
  done
  true >"$d/why-$why"
  kill -s TERM -- "-$child"
  sleep 2
  kill -s KILL -- "-$child"
}

# Print "out" from byte OFFSET until the process CHILD is gone and everything it wrote has been printed.
# A shell with nothing else to do says "follow exec".
follow() {
  if [ "$toolset" = gnu ]; then
    $1 tail -c +$((offset + 1)) -s 0.01 --pid="$child" -f "$d/out" 2>/dev/null
    return
  fi
  pause=0.02
  while :; do
    alive=yes
    kill -s 0 "$child" 2>/dev/null || alive=
    size=$(wc -c <"$d/out")
    if [ "$size" -gt "$offset" ]; then
      tail -c +$((offset + 1)) "$d/out" | head -c $((size - offset))
      offset=$size pause=0.02
    elif [ -z "$alive" ]; then
      return
    else
      sleep $pause
      case $pause in 0.02) pause=0.05 ;; 0.05) pause=0.1 ;; *) pause=0.2 ;; esac
    fi
  done
}

start() {
  in=/dev/null
  if [ "$stdin" -gt 0 ]; then
    in=$d.in
    head -c "$stdin" >"$in"
    [ "$(wc -c <"$in")" -eq "$stdin" ] || { echo cut >&2; exit; }
  fi
  mkdir "$d" 2>/dev/null || return # somebody was first: follow that one
  true >"$d/out"
  # A background job of a script ignores INT and QUIT, and a program cannot take that back by itself.
  if [ "$toolset" = gnu ]; then set -- env --default-signal=INT,QUIT "$@"; fi
  # In a shell of its own, which becomes the command: whatever names the variables have, they are not the keeper's.
  (
    [ -e "$R/env" ] && . "$R/env"
    exec setsid "$@"
  ) <"$in" >"$d/out" 2>&1 &
  child=$!
  echo $child >"$d/child"
  watch >/dev/null 2>&1 &
  watcher=$!
  follow exec &
  follower=$!
  wait $child 2>/dev/null
  code=$?
  # A fast writer fills the disk, and fails of that, before the watcher has looked.
  [ $code -ne 0 ] && [ "$(wc -c <"$d/out")" -gt "$limit" ] && true >"$d/why-output"
  true >"$d/exit-$code" # not ":", whose failing redirection would end this shell
  [ -e "$d"/why-* ] || kill -s KILL $watcher
  wait $follower
  ended
  echo lost >&2 # the command wiped its own records
  exit
}

if [ "$1" = stop ]; then
  stop "$2"
  exit
fi
d=$R/$2 timeout=$3 limit=$4 offset=$5 stdin=$6 forget=$7
shift 7
n=0
until [ -e "$R/born" ]; do # the sandbox writes it first thing; missing later means its records were wiped
  n=$((n + 1))
  [ $n -gt 100 ] && { echo lost >&2; exit; }
  sleep 0.02
done
read -r toolset <"$R/born"
for old in $forget; do rm -rf "${R:?}/$old" "${R:?}/$old".*; done
[ -d "$d" ] || start "$@"
n=0
until [ -s "$d/child" ]; do
  n=$((n + 1))
  [ $n -gt 100 ] && { echo lost >&2; exit; }
  sleep 0.02
done
read -r child <"$d/child"
follow
n=0
while [ $n -lt 100 ]; do # the keeper writes the code a moment after the child is gone
  ended
  n=$((n + 1))
  sleep 0.02
done
echo lost >&2
