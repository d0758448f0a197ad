# shellcheck shell=bash
# Image archives by hand: a layer is a tar file, an archive is a tar of layers, a configuration and a manifest.

epoch=1767225600   # every file's time, so that the same content has the same digest

# A layer from a folder's content, owned by root unless told otherwise.
layer() {
  local folder=$1 out=$2; shift 2
  tar -C "$folder" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner "$@" -cf "$out" .
}

# archive OUT NAME CONFIG LAYER...   CONFIG is the image's "config" object as JSON.
# The manifest comes first, so that a reader learns what is inside without reading the layers.
archive() {
  local out=$1 name=$2 config=$3 tmp file diff diffs="" files="" history="" digest; shift 3
  tmp=$(mktemp -d "${out%/*}/archive.XXXXXX")
  for file in "$@"; do
    diff=$(diff_id "$file")
    ln "$file" "$tmp/$diff.tar" 2>/dev/null || cp "$file" "$tmp/$diff.tar"
    diffs+="${diffs:+,}\"sha256:$diff\"" files+="${files:+,}\"$diff.tar\"" history+="${history:+,}{\"created_by\":\"hack/images/build\"}"
  done
  printf '{"architecture":"%s","os":"linux","created":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]},"history":[%s]}' \
    "$(dpkg --print-architecture)" "$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)" "$config" "$diffs" "$history" > "$tmp/config"
  digest=$(sha256sum < "$tmp/config"); digest=${digest%% *}
  mv "$tmp/config" "$tmp/$digest.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":[%s]}]' "$digest" "$name" "$files" > "$tmp/manifest.json"
  (cd "$tmp" && tar --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --hard-dereference -cf "$out" manifest.json "$digest.json" ./*.tar --transform='s,^\./,,')
  rm -rf "$tmp"
}

# The digest of the layer before compression; a root file system's is kept beside it.
diff_id() {
  if [ -f "$1.diffid" ]; then cat "$1.diffid"; return; fi
  sha256sum < "$1" | cut -d' ' -f1
}
