# Builds with a buildkitd of the pod's own, as root of its user namespace; leaves an OCI archive with uncompressed new layers.
# Arguments: --opt build-arg:KEY=VALUE ... (from the recipe). The rest is in SLIPWAY_...
storage=/var/lib/buildkit
# The folder's group and setgid bit are the shared volume's; an image's files must not inherit them.
chgrp 0 "$storage"
chmod 755 "$storage" && chmod g-s "$storage"
# Blobs pass through here, and /tmp is small.
export TMPDIR=$storage/tmp
mkdir -p "$TMPDIR" "${SLIPWAY_ARCHIVE%/*}"

# The RuntimeDefault seccomp profile refuses keyctl (a session keyring) and pivot_root; the pod is the sandbox, so runc does without.
runc=$(command -v runc || command -v buildkit-runc)
printf '#!/bin/sh\nrunc=%s\n' "$runc" > /tmp/runc
cat >> /tmp/runc <<'END'
todo=yes
for argument; do
  shift
  set -- "$@" "$argument"
  case $todo$argument in yesrun | yescreate) set -- "$@" --no-new-keyring --no-pivot; todo=no ;; esac
done
exec "$runc" "$@"
END
chmod 755 /tmp/runc

{
  printf 'root = "%s"\n[grpc]\naddress = ["unix:///tmp/buildkitd.sock"]\n' "$storage"
  printf '[worker.oci]\nenabled = true\nsnapshotter = "overlayfs"\nbinary = "/tmp/runc"\nnoProcessSandbox = true\nnetworkMode = "host"\ngc = false\n'
  printf '[worker.containerd]\nenabled = false\n'
  IFS=,
  for origin in $SLIPWAY_PLAIN_HTTP; do printf '[registry."%s"]\nhttp = true\n' "$origin"; done
  unset IFS
} > /tmp/buildkitd.toml
export BUILDKIT_HOST=unix:///tmp/buildkitd.sock
buildkitd --config /tmp/buildkitd.toml > /tmp/buildkitd.log 2>&1 &
tries=0
until buildctl debug workers > /dev/null 2>&1; do
  tries=$((tries + 1))
  if [ "$tries" -gt 300 ]; then echo "buildkitd does not start:"; tail -n 50 /tmp/buildkitd.log; exit 1; fi
  sleep 0.1
done

# With one time for all files, one commit gives one digest; buildctl hands SOURCE_DATE_EPOCH on by itself.
output="type=oci,dest=$SLIPWAY_ARCHIVE,name=image,compression=uncompressed"
if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then output="$output,rewrite-timestamp=true"; fi
buildctl build --progress plain --frontend dockerfile.v0 \
  --local "context=$SLIPWAY_CONTEXT_PATH" --local "dockerfile=${SLIPWAY_BUILD_FILE%/*}" --opt "filename=${SLIPWAY_BUILD_FILE##*/}" \
  --opt "platform=$SLIPWAY_PLATFORM" --output "$output" "$@" ||
  { code=$?; echo "the end of buildkitd's log:"; tail -n 20 /tmp/buildkitd.log; exit "$code"; }
