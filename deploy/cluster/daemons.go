package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"path/filepath"
	"text/template"
)

const nodeName = "kerf"

// kubeletPort is not 10250, where a kubelet that serves the machine listens on every address.
const kubeletPort = "21250"

// cniPlugins is where Debian puts them.
const cniPlugins = "/usr/lib/cni"

// daemon is a program that runs as long as the cluster does.
type daemon struct {
	name string
	argv []string
	node bool   // it runs in the node's mount namespace
	gate bool   // those after it start when it is healthy; the others wait for each other by themselves
	url  string // of its health; containerd has none, and is asked with ctr
}

// daemons lists all, in the order of their start.
func daemons(l layout, s state) []daemon {
	tls := func(name, cert, key string) []string {
		return []string{"--" + cert + "=" + l.pki(name+".crt"), "--" + key + "=" + l.pki(name+".key")}
	}
	health := func(port string) string { return "https://" + net.JoinHostPort(s.nodeIP(), port) + "/healthz" }
	ca := l.pki("ca.crt")
	all := []daemon{
		{name: "etcd", gate: true, url: s.etcdURL() + "/health", argv: join(s.Tools+"/etcd",
			tls("etcd", "cert-file", "key-file"), tls("etcd", "peer-cert-file", "peer-key-file"),
			"--client-cert-auth", "--trusted-ca-file="+ca, "--peer-client-cert-auth", "--peer-trusted-ca-file="+ca,
			"--name="+nodeName, "--data-dir="+filepath.Join(l.dir, "etcd"), "--unsafe-no-fsync",
			"--listen-client-urls="+s.etcdURL(), "--advertise-client-urls="+s.etcdURL(),
			"--listen-peer-urls="+s.etcdPeer(), "--initial-advertise-peer-urls="+s.etcdPeer(), "--initial-cluster="+nodeName+"="+s.etcdPeer())},
		{name: "containerd", node: true, gate: true, argv: join(s.Tools+"/containerd", "--config="+l.conf("containerd.toml"))},
		{name: "kube-apiserver", gate: true, url: s.apiURL() + "/readyz", argv: join(s.Bin+"/kube-apiserver",
			"--etcd-servers="+s.etcdURL(), "--etcd-cafile="+ca, tls("etcd", "etcd-certfile", "etcd-keyfile"),
			// The address of the Service kubernetes is the server's own, so that pods reach it without kube-proxy.
			"--bind-address="+s.apiIP(), "--advertise-address="+s.apiIP(), "--secure-port=443", "--service-cluster-ip-range="+s.svcNet(),
			"--client-ca-file="+ca, tls("apiserver", "tls-cert-file", "tls-private-key-file"), "--cert-dir="+l.pki("unused"),
			"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority="+ca, tls("admin", "kubelet-client-certificate", "kubelet-client-key"),
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file="+l.pki("service-account.key"), "--service-account-signing-key-file="+l.pki("service-account.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
			// Webhooks and aggregated APIs are dialled at their pods: nothing routes Service addresses here.
			"--enable-aggregator-routing")},
		{name: "kube-scheduler", url: health("10259"), argv: join(s.Bin+"/kube-scheduler", "--kubeconfig="+l.pki("scheduler.kubeconfig"),
			tls("apiserver", "tls-cert-file", "tls-private-key-file"),
			"--leader-elect=false", "--bind-address="+s.nodeIP())},
		{name: "kube-controller-manager", url: health("10257"), argv: join(s.Bin+"/kube-controller-manager", "--kubeconfig="+l.pki("controller-manager.kubeconfig"),
			tls("apiserver", "tls-cert-file", "tls-private-key-file"),
			"--leader-elect=false", "--bind-address="+s.nodeIP(), "--use-service-account-credentials",
			"--service-account-private-key-file="+l.pki("service-account.key"), "--root-ca-file="+ca,
			tls("ca", "cluster-signing-cert-file", "cluster-signing-key-file"))},
		{name: "kubelet", node: true, url: health(kubeletPort), argv: join(s.Bin+"/kubelet", "--config="+l.conf("kubelet.yaml"), "--kubeconfig="+l.pki("kubelet.kubeconfig"),
			"--hostname-override="+nodeName, "--node-ip="+s.nodeIP())},
	}
	for i, d := range all {
		if s.Gates != "" && d.name != "etcd" && d.name != "containerd" {
			all[i].argv = append(d.argv, "--feature-gates="+s.Gates)
		}
	}
	if s.Nodes > 0 {
		for i, d := range all { // with many nodes their work is what is measured, not the limits of their clients
			if d.name == "kube-scheduler" || d.name == "kube-controller-manager" {
				all[i].argv = append(d.argv, "--kube-api-qps=5000", "--kube-api-burst=10000")
			}
		}
		address := net.JoinHostPort(s.nodeIP(), "10247")
		all = append(all, daemon{name: "kwok", url: "http://" + address + "/healthz", argv: join(s.Kwok+"/kwok", "--kubeconfig="+l.kubeconfig(),
			"--config="+l.conf("kwok.yaml"), "--manage-nodes-with-label-selector="+simulatedLabel+"="+simulatedValue, "--server-address="+address,
			// It renews leases four times in this, and a node without renewal for 50 s is not ready.
			"--node-lease-duration-seconds=120")})
	}
	return all
}

// join makes one list of strings and lists of strings.
func join(program string, args ...any) []string {
	argv := []string{program}
	for _, arg := range args {
		switch arg := arg.(type) {
		case string:
			argv = append(argv, arg)
		case []string:
			argv = append(argv, arg...)
		}
	}
	return argv
}

var (
	//go:embed conf/containerd.toml
	containerdConf string
	//go:embed conf/kubelet.yaml
	kubeletConf string
	//go:embed conf/cni.conflist
	cniConf string
	//go:embed conf/kwok.yaml
	kwokConf []byte
)

// configuration renders the files of the daemons, by path.
func configuration(l layout, s state) (map[string][]byte, error) {
	values := map[string]string{
		"CA": l.pki("ca.crt"), "Cert": l.pki("kubelet.crt"), "Key": l.pki("kubelet.key"), "NodeIP": s.nodeIP(), "Port": kubeletPort, "PodNet": s.podNet(),
		"Link": s.link(), "Cgroup": "/" + s.cgroup(), "Pause": pauseImage, "Plugins": cniPlugins,
	}
	files := map[string][]byte{l.conf("kwok.yaml"): kwokConf} // it has templates of kwok's own
	for path, text := range map[string]string{
		l.conf("containerd.toml"): containerdConf, l.conf("kubelet.yaml"): kubeletConf, l.root("etc/cni/net.d/kerf.conflist"): cniConf,
	} {
		t, err := template.New(filepath.Base(path)).Option("missingkey=error").Parse(text)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", filepath.Base(path), err)
		}
		var out bytes.Buffer
		if err := t.Execute(&out, values); err != nil {
			return nil, fmt.Errorf("render %s: %w", filepath.Base(path), err)
		}
		files[path] = out.Bytes()
	}
	return files, nil
}
