# shellcheck shell=bash
# Background processes by recorded pid and start time (a pid alone may be another process's by now).
# shellcheck disable=SC2154  # state, socket come from the cluster script

# Nothing for a zombie: it ended, whether or not anybody asked how.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" && $1 != "X" { print $20 }'; }

start() {
  local name=$1 pid; shift
  (cd "$state" && exec setsid "$@") > "$state/log/$name.log" 2>&1 < /dev/null 9>&- &
  pid=$!
  echo "$pid $(started_at "$pid")" > "$state/run/$name.pid"
}

pid_of() { cut -d' ' -f1 "$state/run/$1.pid" 2>/dev/null; }

alive() {
  local pid at
  read -r pid at 2>/dev/null < "$state/run/$1.pid" || return 1
  [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ]
}

# Waits for a command to succeed; a part that died, or a deadline, ends the wait with the end of its log.
await() {
  local name=$1 deadline=$((SECONDS + 60)); shift
  until "$@" > /dev/null 2>&1; do
    if ! alive "$name"; then fail "$name" "died"; fi
    if [ $SECONDS -ge $deadline ]; then fail "$name" "is not ready after 60 s"; fi
    sleep 0.1
  done
}

fail() {
  echo "cluster: $1 $2; the end of $state/log/$1.log:" >&2
  tail -n 20 "$state/log/$1.log" >&2
  exit 1
}

# SIGKILL: an apiserver drains for a minute otherwise, and nothing here is worth saving.
stop_parts() {
  local file name
  for file in "$state"/run/*.pid; do
    name=$(basename "$file" .pid)
    if alive "$name"; then kill -KILL "$(pid_of "$name")" 2>/dev/null || true; fi
  done
  for file in "$state"/run/*.pid; do
    name=$(basename "$file" .pid)
    while alive "$name"; do sleep 0.02; done
  done
}

# Shims are told which containerd they serve; containers are their children. Works without containerd.
stop_containers() {
  local shim child
  for shim in $(shims); do
    for child in $(children "$shim"); do kill -KILL "$child" 2>/dev/null || true; done
    kill -KILL "$shim" 2>/dev/null || true
  done
  while [ -n "$(shims)" ]; do sleep 0.02; done
}

shims() {
  local file
  for file in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2>/dev/null < "$file" | grep -qsF -- "containerd-shim-runc-v2 " \
      && tr '\0' ' ' 2>/dev/null < "$file" | grep -qsF -- "$socket"; then
      file=${file%/cmdline}; echo "${file#/proc/}"
    fi
  done
}

children() { cat "/proc/$1/task/"*/children 2>/dev/null || true; }

# Longest paths first, so that what is mounted inside goes before what it is mounted in.
unmount_all() {
  local mount
  awk -v prefix="$node_dir/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
    umount -l "$mount" 2>/dev/null || true
  done
}

# The kubelet's tree in every cgroup hierarchy (v1), or in the only one (v2), from the leaves up.
remove_cgroups() {
  local top deadline=$((SECONDS + 10))
  for top in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods; do
    while [ -d "$top" ] && [ $SECONDS -lt $deadline ]; do
      find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    done
  done
}

# The CNI library's notes on each running container's network; their place cannot be configured.
forget_networks() {
  local task
  for task in "$node_dir"/run/io.containerd.runtime.v2.task/k8s.io/*; do
    rm -f /var/lib/cni/results/*-"$(basename "$task")"-*
  done
}

# More whose place cannot be configured: links to logs, shims' sockets that nobody listens on, the kubelet's plugin socket.
remove_strays() {
  [ -d "$node_dir" ] || return 0
  find /var/log/containers -maxdepth 1 -lname "$state/*" -delete 2>/dev/null || true
  local file
  for file in /run/containerd/s/*; do
    grep -qsF "$file" /proc/net/unix || rm -f "$file"
  done
  rm -f /var/lib/kubelet/device-plugins/kubelet.sock
  rmdir -p --ignore-fail-on-non-empty /run/containerd/s /var/lib/kubelet/device-plugins /var/lib/cni/results /var/log/containers 2>/dev/null || true
}
