# What a sandbox runs as its own program: leave the birth marker, then wait to be removed.
# The marker says which tools there are. Its absence later means that the records of commands were wiped.
toolset=plain
case $(tail --version 2>/dev/null) in
*GNU*) env --default-signal=INT,QUIT true 2>/dev/null && toolset=gnu ;;
esac
echo $toolset >"${AGENTFLEET_RECORDS:-/run/agentfleet}/born"
exec tail -f /dev/null
