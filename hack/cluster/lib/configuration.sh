# shellcheck shell=bash
# Configuration files of the parts.
# shellcheck disable=SC2154  # state, socket, tools, bridge... come from the cluster script

configuration() {
  containerd_configuration
  plain_http_registry registry.slipway-demo.svc.cluster.local:5000 10.96.0.50:5000
  plain_http_registry registry.slipway-test.svc.cluster.local:5000 10.96.0.51:5000
  cni_configuration
  dns_configuration
  kubelet_configuration
  scheduler_configuration
  proxy_configuration
  # Who asked for what: cheap, and lets benchmarks count the operator's requests.
  printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n' > "$state/etc/audit.yaml"
}

# restrict_oom_score_adj: containers start without CAP_SYS_RESOURCE. Nothing of it is outside the cluster's own folders.
containerd_configuration() {
  cat > "$state/etc/containerd.toml" << END
version = 3
root = "$node_dir/containerd"
state = "$node_dir/run"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$node_dir/containerd/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "$state/etc/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["${SLIPWAY_CNI_PLUGINS:-/usr/lib/cni}"]
  conf_dir = "$state/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = "$tools/runc"
    Root = "$node_dir/run/runc"
END
}

# The node does not resolve service names, so an in-cluster registry's name stands for its fixed cluster address.
plain_http_registry() {
  mkdir -p "$state/etc/certs.d/$1"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$2" "$2" > "$state/etc/certs.d/$1/hosts.toml"
}

# No ipMasq and no portmap: one masquerade rule for the bridge (network.sh) spares several iptables calls per pod.
cni_configuration() {
  cat > "$state/cni/10-bridge.conflist" << END
{"cniVersion": "1.0.0", "name": "slipway", "plugins": [{"type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$state/cni/addresses", "ranges": [[{"subnet": "$pod_cidr"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
}

# Pods ask the bridge's address: service names from the API, everything else from whom the node asks.
dns_configuration() {
  cat > "$state/etc/Corefile" << END
. {
    bind $node_ip
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig $state/etc/dns.kubeconfig
        pods insecure
        ttl 1
    }
    cache 5 {
        disable denial cluster.local
    }
    forward . /etc/resolv.conf
}
END
  echo "nameserver $node_ip" > "$state/etc/resolv.conf"
}

# Limits that would throttle many pods at once are off, as is anything that removes images behind a test's back.
# NeverVerify: else an imported image cannot be used any more once the same image was pulled by another name.
kubelet_configuration() {
  cat > "$state/etc/kubelet.yaml" << END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
oomScoreAdj: 0
containerRuntimeEndpoint: unix://$socket
podLogsDir: $state/log/pods
authentication: {x509: {clientCAFile: $state/pki/ca.crt}, anonymous: {enabled: false}, webhook: {enabled: true}}
authorization: {mode: Webhook}
tlsCertFile: $state/pki/kubelet.crt
tlsPrivateKeyFile: $state/pki/kubelet.key
clusterDomain: cluster.local
clusterDNS: [$node_ip]
resolvConf: $state/etc/resolv.conf
maxPods: 250
podPidsLimit: 4096
serializeImagePulls: false
registryPullQPS: 0
imagePullCredentialsVerificationPolicy: NeverVerify
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
END
}

scheduler_configuration() {
  cat > "$state/etc/scheduler.yaml" << END
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection: {kubeconfig: $state/etc/scheduler.kubeconfig, qps: 100, burst: 200}
leaderElection: {leaderElect: false}
END
}

# conntrack 0: leave the machine's own table size; oomScoreAdj 0: lowering it takes CAP_SYS_RESOURCE.
proxy_configuration() {
  cat > "$state/etc/proxy.yaml" << END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/etc/proxy.kubeconfig}
hostnameOverride: $node
clusterCIDR: $pod_cidr
mode: iptables
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 100ms, localhostNodePorts: false}
END
}
