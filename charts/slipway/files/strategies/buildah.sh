# Builds with buildah, as root of the pod's user namespace; leaves the OCI image in a docker archive.
# Arguments: --build-arg KEY=VALUE ... (from the recipe). The rest is in SLIPWAY_...
storage=/var/lib/containers
# The folder's group and setgid bit are the shared volume's; an image's files must not inherit them.
chgrp 0 "$storage"
chmod 755 "$storage" && chmod g-s "$storage"
# Blobs pass through here, and /tmp is small.
export TMPDIR=$storage/tmp
mkdir -p "$TMPDIR" "${SLIPWAY_ARCHIVE%/*}"

export CONTAINERS_STORAGE_CONF=/tmp/storage.conf CONTAINERS_REGISTRIES_CONF=/tmp/registries.conf
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/storage"\nrunroot = "/tmp/run"\n' "$storage" > "$CONTAINERS_STORAGE_CONF"
{
  list=
  for registry in $SEARCH_REGISTRIES; do list="$list${list:+, }\"$registry\""; done
  printf 'unqualified-search-registries = [%s]\n' "$list"
  IFS=,
  for origin in $SLIPWAY_PLAIN_HTTP; do printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$origin"; done
  unset IFS
} > "$CONTAINERS_REGISTRIES_CONF"

# With one time for all files, one commit gives one digest. Newer buildahs refuse the flag beside the variable.
if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
  set -- --timestamp "$SOURCE_DATE_EPOCH" "$@"
  unset SOURCE_DATE_EPOCH
fi
buildah build --format oci --layers=false --platform "$SLIPWAY_PLATFORM" --file "$SLIPWAY_BUILD_FILE" --tag image "$@" "$SLIPWAY_CONTEXT_PATH"
# A docker archive has layers as they are; an OCI one would be compressed here, and whoever collects does that once, if at all.
exec buildah push --quiet image "docker-archive:$SLIPWAY_ARCHIVE"
