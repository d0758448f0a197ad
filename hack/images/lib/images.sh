# shellcheck shell=bash
# One pair of functions per image: inputs_of_X prints what its key covers, build_X OUT writes its archive.
# shellcheck disable=SC2154  # here, work, binary come from the build script

tool() { echo "$("$here/../cluster/build-tools" --dir "$1" 2> >(grep -v ' cached ' >&2))/${2:-$1}"; }

# The node's sandbox image.
inputs_of_pause() { cat "$here/pause/pause.c"; }
build_pause() {
  mkdir "$work/root"
  cc -static -Os -s -o "$work/root/pause" "$here/pause/pause.c"
  layer "$work/root" "$work/layer.tar"
  archive "$1" localhost/pause:1 '{"User":"65535:65535","Entrypoint":["/pause"]}' "$work/layer.tar"
}

# An OCI registry: one static program. Its folder belongs to the user, for an emptyDir with fsGroup 65532 or none at all.
inputs_of_registry() { cat "$here/registry/config.yml"; readlink -f "$(tool registry)"; }
build_registry() {
  mkdir -p "$work/root"/{etc/distribution,etc/ssl/certs,usr/bin} "$work/data/var/lib/registry"
  cp "$(tool registry)" "$work/root/usr/bin/registry"
  cp "$here/registry/config.yml" "$work/root/etc/distribution/config.yml"
  node_authorities > "$work/root/etc/ssl/certs/ca-certificates.crt"
  layer "$work/root" "$work/layer.tar"
  layer "$work/data" "$work/data.tar" --owner=65532 --group=65532
  archive "$1" slipway.dev/registry:dev \
    '{"User":"65532:65532","Env":["OTEL_TRACES_EXPORTER=none"],"Entrypoint":["/usr/bin/registry"],"Cmd":["serve","/etc/distribution/config.yml"],"ExposedPorts":{"5000/tcp":{}}}' \
    "$work/layer.tar" "$work/data.tar"
}

# What builds start FROM. Compressed, because it is pushed to registries from this archive.
inputs_of_debian_base() { rootfs_inputs minbase; }
build_debian_base() {
  local root
  root=$(rootfs minbase "")
  gzip -n -6 < "$root" > "$work/layer.tar"
  cp "$root.diffid" "$work/layer.tar.diffid"
  archive "$1" slipway.dev/debian-base:dev '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["bash"]}' "$work/layer.tar"
}

# Git over smart HTTP.
git_http_packages=git,lighttpd
inputs_of_git_http() { rootfs_inputs essential $git_http_packages; cat "$here"/git-http/*; }
build_git_http() {
  mkdir -p "$work/root/etc/lighttpd" "$work/root/usr/bin" "$work/data/srv/git"
  cp "$here/git-http/lighttpd.conf" "$work/root/etc/lighttpd/git.conf"
  install -m 755 "$here/git-http/serve" "$work/root/usr/bin/serve"
  printf '[safe]\n\tdirectory = *\n' > "$work/root/etc/gitconfig"
  layer "$work/root" "$work/layer.tar"
  layer "$work/data" "$work/data.tar" --owner=65532 --group=65532
  archive "$1" slipway.dev/git-http:dev '{"User":"65532:65532","Entrypoint":["/usr/bin/serve"],"ExposedPorts":{"8080/tcp":{}}}' \
    "$(rootfs essential $git_http_packages)" "$work/layer.tar" "$work/data.tar"
}

# Builder: Debian's buildah.
buildah_packages=buildah,git,ca-certificates
inputs_of_builder_buildah() { rootfs_inputs essential $buildah_packages; cat "$here"/builder-buildah/*; }
build_builder_buildah() {
  mkdir -p "$work/root/etc/containers" "$work/root/var/lib/containers"
  cp "$here"/builder-buildah/* "$work/root/etc/containers/"
  layer "$work/root" "$work/layer.tar"
  archive "$1" slipway.dev/builder-buildah:dev '{"Env":["BUILDAH_ISOLATION=chroot"],"Cmd":["buildah"]}' \
    "$(rootfs essential $buildah_packages)" "$work/layer.tar"
}

# Builder: BuildKit and its runc from their modules (Debian's runc is too old for user namespaces).
buildkit_packages=ca-certificates,libseccomp2
inputs_of_builder_buildkit() {
  rootfs_inputs essential $buildkit_packages
  cat "$here"/builder-buildkit/*
  readlink -f "$(tool buildkit buildkitd)" "$(tool runc)"
}
build_builder_buildkit() {
  mkdir -p "$work/root"/{usr/bin,etc/buildkit}
  cp "$(tool buildkit buildkitd)" "$(tool buildkit buildctl)" "$(tool runc)" "$work/root/usr/bin/"
  install -m 755 "$here/builder-buildkit/runc" "$work/root/usr/bin/buildkit-runc"
  cp "$here/builder-buildkit/buildkitd.toml" "$work/root/etc/buildkit/"
  layer "$work/root" "$work/layer.tar"
  archive "$1" slipway.dev/builder-buildkit:dev '{"Cmd":["buildkitd"]}' "$(rootfs essential $buildkit_packages)" "$work/layer.tar"
}

# The operator. Only its own layer changes from build to build.
slipway_packages=git,ca-certificates,openssh-client
inputs_of_slipway() { rootfs_inputs essential $slipway_packages; cat "$binary"; }
build_slipway() {
  mkdir -p "$work/root/usr/bin"
  install -m 755 "$binary" "$work/root/usr/bin/slipway"
  layer "$work/root" "$work/layer.tar"
  archive "$1" slipway.dev/slipway:dev '{"User":"65532:65532","Entrypoint":["/usr/bin/slipway"]}' \
    "$(rootfs essential $slipway_packages)" "$work/layer.tar"
}
