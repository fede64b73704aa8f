package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// identity is a certificate that the cluster's authority signs. Kubernetes takes the user from the common name and
// the groups from the organizations.
type identity struct {
	name, user, group string
	serves            bool // it is a server's, for every address and name of the cluster
}

func identities() []identity {
	return []identity{
		{name: "admin", user: "kerf-cluster-admin", group: "system:masters"},
		{name: "kubelet", user: "system:node:" + nodeName, group: "system:nodes", serves: true},
		{name: "scheduler", user: "system:kube-scheduler"},
		{name: "controller-manager", user: "system:kube-controller-manager"},
		{name: "apiserver", user: "kube-apiserver", serves: true},
		{name: "etcd", user: "etcd", serves: true},
	}
}

// certainFor outlives any test; a cluster is made anew rather than renewed.
const certainFor = 365 * 24 * time.Hour

// writePKI makes the authority, a certificate and a kubeconfig for every identity, and the service accounts' key.
func writePKI(l layout, s state) error {
	authority := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "kerf-cluster"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	authorityKey, err := writeCertificate(l, "ca", authority, authority, nil)
	if err != nil {
		return err
	}
	for _, id := range identities() {
		cert := &x509.Certificate{
			Subject:     pkix.Name{CommonName: id.user},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if id.group != "" {
			cert.Subject.Organization = []string{id.group}
		}
		if id.serves {
			cert.ExtKeyUsage = append(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
			cert.IPAddresses = []net.IP{net.ParseIP(s.nodeIP()), net.ParseIP(s.apiIP())}
			cert.DNSNames = []string{nodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
		}
		if _, err := writeCertificate(l, id.name, cert, authority, authorityKey); err != nil {
			return err
		}
		path := l.pki(id.name + ".kubeconfig")
		if id.name == "admin" {
			path = l.kubeconfig()
		}
		if err := writeKubeconfig(l, s, id.name, path); err != nil {
			return err
		}
	}
	_, err = writeKey(l, "service-account")
	return err
}

// writeCertificate writes NAME.crt and NAME.key. Without the signer's key, it signs itself.
func writeCertificate(l layout, name string, cert, signer *x509.Certificate, signerKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := writeKey(l, name)
	if err != nil {
		return nil, err
	}
	if signerKey == nil {
		signerKey = key
	}
	if cert.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	cert.NotBefore = time.Now().Add(-time.Hour) // a clock that is set back a little does no harm
	cert.NotAfter = cert.NotBefore.Add(certainFor)
	der, err := x509.CreateCertificate(rand.Reader, cert, signer, &key.PublicKey, signerKey)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	return key, writeFile(l.pki(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func writeKey(l layout, name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of %s: %w", name, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key of %s: %w", name, err)
	}
	return key, writeFile(l.pki(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// writeKubeconfig writes one that carries its keys, so that it can be copied elsewhere.
func writeKubeconfig(l layout, s state, name, path string) error {
	var encoded [3]string
	for i, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		data, err := os.ReadFile(l.pki(file))
		if err != nil {
			return fmt.Errorf("write a kubeconfig: %w", err)
		}
		encoded[i] = base64.StdEncoding.EncodeToString(data)
	}
	return writeFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: kerf-cluster
contexts: [{name: kerf-cluster, context: {cluster: kerf-cluster, user: %[1]s}}]
clusters: [{name: kerf-cluster, cluster: {server: %[2]q, certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {client-certificate-data: %[4]s, client-key-data: %[5]s}}]
`, name, s.apiURL(), encoded[0], encoded[1], encoded[2]), 0o600)
}
