#!/bin/sh
# Runs as the student: the newest pages into ~/course, whose own changes stay; then the server, each of its processes within a limit of
# memory. A pull that fails (no room, no network) keeps nobody out of what is there already.
umask 077
gitpuller "$QLAB_COURSE" main "$HOME/course" || echo "qlab: the course was not brought up to date from $QLAB_COURSE" >&2
mkdir -p "$HOME/course"
exec prlimit --data="$QLAB_LIMIT" jupyterhub-singleuser "$@"
