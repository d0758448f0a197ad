# shellcheck shell=bash
# Debian root file systems. The node's own package sources, apt settings and certificate authorities go in, whatever they
# are, so that packages can be had from inside wherever the node can get them.
# shellcheck disable=SC2154  # cache, epoch come from the callers

suite=bookworm

# Only Debian's own sources of the suite; without any (another distribution) mmdebstrap's default serves.
node_sources() {
  # shellcheck disable=SC2016  # apt expands them
  apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' | sort -u |
    awk -v suite="$suite" '$4 == "Debian" && index($2, suite) == 1 { print "deb", $1, $2, $3 }'
}

# How the node fetches: proxies, retries, checks. What apt has by default anyway is left out, and so are credentials.
node_apt_settings() {
  apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until|Check-Date|ForceIPv4|ForceIPv6|Languages|GzipIndexes)' |
    grep -vE ' "";$|://[^/]*@|::Proxy-Auto-Detect' || true
  [ -z "${http_proxy:-}" ] || grep -q @ <<< "$http_proxy" || echo "Acquire::http::Proxy \"$http_proxy\";"
}

node_authorities() { cat /etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates/*.crt 2>/dev/null || true; }

# What a root file system is made from, for its key. Asking apt takes a moment, so it is asked once.
rootfs_inputs() { echo "$@" "$node_key"; }
node_key=$({ node_sources; node_apt_settings; node_authorities; cat "${BASH_SOURCE[0]}"; } | sha256sum)

# rootfs VARIANT PACKAGES [mmdebstrap options...]   prints the path of an uncompressed layer.
rootfs() {
  local variant=$1 packages=$2 key out tmp hook sources=()
  key=$(rootfs_inputs "$@" | sha256sum | cut -c1-16)
  out=$cache/rootfs-$key.tar
  if [ -f "$out" ]; then echo "$out"; return; fi
  shift 2
  tmp=$(mktemp -d "$cache/.rootfs.XXXXXX")
  node_sources > "$tmp/sources.list"
  [ ! -s "$tmp/sources.list" ] || sources=("$tmp/sources.list")
  node_apt_settings > "$tmp/apt.conf"
  # shellcheck disable=SC2016  # mmdebstrap expands $1, the root file system
  hook='mkdir -p "$1"/etc/ssl/certs "$1"/usr/local/share/ca-certificates
    cp /etc/ssl/certs/ca-certificates.crt "$1"/etc/ssl/certs/ca-certificates.crt
    cp /usr/local/share/ca-certificates/*.crt "$1"/usr/local/share/ca-certificates/ 2>/dev/null || true
    echo slipway:x:65532: >> "$1"/etc/group
    echo slipway:x:65532:65532::/tmp:/usr/sbin/nologin >> "$1"/etc/passwd
    rm -rf "$1"/var/log/*.log "$1"/var/log/apt "$1"/var/cache/ldconfig/aux-cache "$1"/usr/share/doc "$1"/usr/share/man'
  SOURCE_DATE_EPOCH=$epoch DEBIAN_FRONTEND=noninteractive mmdebstrap --quiet --mode=root --skip=output/dev --variant="$variant" ${packages:+--include="$packages"} \
    --aptopt="$tmp/apt.conf" --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --customize-hook="$hook" "$@" "$suite" "$tmp/root.tar" "${sources[@]}" < /dev/null > "$tmp/log" 2>&1 ||
    { cat "$tmp/log" >&2; rm -rf "$tmp"; return 1; }
  sha256sum < "$tmp/root.tar" | cut -d' ' -f1 > "$out.diffid"
  mv "$tmp/root.tar" "$out"
  rm -rf "$tmp"
  echo "$out"
}
