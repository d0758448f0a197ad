# shellcheck shell=bash
# The bridge that pods are on, and what the cluster puts into the machine's packet filter.
# shellcheck disable=SC2154  # bridge, node_ip, pod_cidr come from the cluster script

# The address must exist before the apiserver advertises it.
network_up() {
  ip link add "$bridge" type bridge
  ip address add "$node_ip/${pod_cidr#*/}" dev "$bridge"
  ip link set "$bridge" up
  sysctl -qw net.ipv4.ip_forward=1
  iptables -w -t nat -A POSTROUTING -s "$pod_cidr" ! -d "$pod_cidr" -m comment --comment slipway-cluster -j MASQUERADE
  # A container engine's default may be to drop what it does not know.
  iptables -w -I FORWARD -i "$bridge" -m comment --comment slipway-cluster -j ACCEPT
  iptables -w -I FORWARD -o "$bridge" -m comment --comment slipway-cluster -j ACCEPT
}

network_down() {
  ip link delete "$bridge" 2>/dev/null || return 0   # never made, so no rules either
  local family table
  for family in iptables ip6tables; do
    for table in filter nat mangle; do forget_rules $family $table; done
  done
}

# Rules and chains of kube-proxy, the kubelet and this script; other rules stay as they are.
forget_rules() {
  local saved
  saved=$("$1-save" -t "$2" 2>/dev/null) || return 0
  if grep -qE 'KUBE-|slipway-cluster' <<< "$saved"; then
    grep -vE 'KUBE-|slipway-cluster' <<< "$saved" | "$1-restore" -w -T "$2"
  fi
}
