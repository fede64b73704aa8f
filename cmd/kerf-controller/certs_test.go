package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const day = 24 * time.Hour

// cluster is an API server with the chart's webhook configurations, and a clock.
type cluster struct {
	*fake.Clientset
	now time.Time
}

func newCluster() *cluster {
	name := metav1.ObjectMeta{Name: webhookConfiguration}
	return &cluster{now: noon, Clientset: fake.NewClientset(
		&admissionregistration.MutatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionregistration.MutatingWebhook{{Name: "pods.kerf.dev"}}},
		&admissionregistration.ValidatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionregistration.ValidatingWebhook{{Name: "claims.kerf.dev"}, {Name: "classes.kerf.dev"}}},
	)}
}

func (c *cluster) replica() *certificates {
	return &certificates{client: c, namespace: "kerf-system", now: func() time.Time { return c.now }, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// bundle is what the API server trusts; the same for all webhooks.
func (c *cluster) bundle(t *testing.T) []byte {
	t.Helper()
	m, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(context.Background(), webhookConfiguration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(context.Background(), webhookConfiguration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bundle := m.Webhooks[0].ClientConfig.CABundle
	for _, w := range v.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			t.Errorf("%s has another bundle", w.Name)
		}
	}
	return bundle
}

// calls is whether the API server, with what it trusts now, can call a replica.
func (c *cluster) calls(t *testing.T, replica *certificates) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.bundle(t))
	here, there := net.Pipe()
	defer here.Close()
	go func() { _ = tls.Server(there, &tls.Config{GetCertificate: replica.get}).Handshake() }()
	return tls.Client(here, &tls.Config{RootCAs: roots, ServerName: "kerf-controller.kerf-system.svc", Time: func() time.Time { return c.now }}).Handshake()
}

func refresh(t *testing.T, c *certificates) {
	t.Helper()
	if err := c.refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func count(pemData []byte) (n int) {
	for block, rest := pem.Decode(pemData); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	return n
}

func TestCertificates(t *testing.T) {
	c := newCluster()
	a, b := c.replica(), c.replica()
	if _, err := a.get(nil); err == nil {
		t.Error("a certificate before there is one")
	}
	refresh(t, a)
	refresh(t, b)
	first := a.serving.Load().Leaf
	if !first.Equal(b.serving.Load().Leaf) {
		t.Error("two replicas have two certificates")
	}
	for _, step := range []struct {
		after         time.Duration
		renewed       bool
		authorities   int
		authorityToo  bool
		whyItIsTested string
	}{
		{time.Minute, false, 1, false, "nothing is due"},
		{59 * day, false, 1, false, "31 days are left"},
		{2 * day, true, 1, false, "29 days are left"},
		{9*365*day - 61*day, true, 2, true, "the authority has less than a year"},
		{time.Minute, false, 2, true, "both are trusted"},
		{500 * day, true, 2, true, "the old authority has ended; the new one is believed"},
	} {
		before := a.serving.Load().Leaf
		c.now = c.now.Add(step.after)
		refresh(t, a)
		if c.now.Before(before.NotAfter) {
			if err := c.calls(t, b); err != nil {
				t.Errorf("%s: the replica that has not looked yet: %v", step.whyItIsTested, err)
			}
		}
		refresh(t, b)
		for _, replica := range []*certificates{a, b} {
			if err := c.calls(t, replica); err != nil {
				t.Errorf("%s: %v", step.whyItIsTested, err)
			}
		}
		if renewed := !before.Equal(a.serving.Load().Leaf); renewed != step.renewed {
			t.Errorf("%s: renewed %v", step.whyItIsTested, renewed)
		}
		if n := count(c.bundle(t)); n != step.authorities {
			t.Errorf("%s: %d authorities, want %d", step.whyItIsTested, n, step.authorities)
		}
	}
}

// What people and crashes do to the Secret and to the configurations.
func TestCertificatesRepair(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*corev1.Secret)
	}{
		{"nothing left", func(s *corev1.Secret) { s.Data = nil }},
		{"no key", func(s *corev1.Secret) { delete(s.Data, "tls.key") }},
		{"no authority's key", func(s *corev1.Secret) { delete(s.Data, "ca.key") }},
		{"garbage", func(s *corev1.Secret) { s.Data["tls.crt"] = []byte("-----BEGIN CERTIFICATE-----\n!!") }},
		{"garbage in PEM", func(s *corev1.Secret) { s.Data["ca.crt"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}) }},
		{"another's authority", func(s *corev1.Secret) {
			other, _ := newAuthority(noon)
			s.Data["ca.crt"] = other.ca
		}},
		{"another's authority, with its key", func(s *corev1.Secret) {
			other, _ := newAuthority(noon)
			s.Data["ca.crt"], s.Data["ca.key"] = other.ca, other.caKey
		}},
		{"another namespace's name", func(s *corev1.Secret) {
			other, _ := keysOf(s).renew([]string{"kerf-controller.other.svc"}, noon)
			s.Data["tls.crt"], s.Data["tls.key"] = other.cert, other.key
		}},
		{"from the future", func(s *corev1.Secret) {
			other, _ := keys{}.renew([]string{"kerf-controller.kerf-system.svc"}, noon.Add(100*day))
			s.Data = map[string][]byte{"ca.crt": other.ca, "ca.key": other.caKey, "tls.crt": other.cert, "tls.key": other.key}
		}},
	} {
		c := newCluster()
		replica := c.replica()
		refresh(t, replica)
		secret, err := c.CoreV1().Secrets("kerf-system").Get(context.Background(), secretName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tt.spoil(secret)
		if _, err := c.CoreV1().Secrets("kerf-system").Update(context.Background(), secret, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		refresh(t, replica)
		if err := c.calls(t, replica); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	c := newCluster()
	replica := c.replica()
	refresh(t, replica)
	if err := replica.announce(context.Background(), nil); err != nil { // as a chart does that is applied again
		t.Fatal(err)
	}
	refresh(t, replica)
	if err := c.calls(t, replica); err != nil {
		t.Errorf("an emptied bundle: %v", err)
	}
}

// Two replicas start at once: the second to write finds the first's.
func TestCertificatesRace(t *testing.T) {
	first, err := keys{}.renew([]string{"kerf-controller.kerf-system.svc", "kerf-controller.kerf-system.svc.cluster.local"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretName, Namespace: "kerf-system"},
		Data: map[string][]byte{"ca.crt": first.ca, "ca.key": first.caKey, "tls.crt": first.cert, "tls.key": first.key}}
	for verb, conflict := range map[string]error{
		"create": apierrors.NewAlreadyExists(corev1.Resource("secrets"), secretName),
		"update": apierrors.NewConflict(corev1.Resource("secrets"), secretName, errors.New("changed")),
	} {
		c := newCluster()
		write := c.Tracker().Create
		if verb == "update" {
			spoilt := secret.DeepCopy()
			spoilt.Data = nil
			if err := c.Tracker().Add(spoilt); err != nil {
				t.Fatal(err)
			}
			write = func(r schema.GroupVersionResource, o runtime.Object, ns string, _ ...metav1.CreateOptions) error {
				return c.Tracker().Update(r, o, ns)
			}
		}
		raced := false
		c.PrependReactor(verb, "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if raced {
				t.Errorf("%s: written over what the first wrote", verb)
			}
			raced = true
			if err := write(corev1.SchemeGroupVersion.WithResource("secrets"), secret, "kerf-system"); err != nil {
				t.Error(err)
			}
			return true, nil, conflict
		})
		replica := c.replica()
		refresh(t, replica)
		if pair, err := first.pair(); err != nil || !pair.Leaf.Equal(replica.serving.Load().Leaf) {
			t.Errorf("%s: two replicas have two certificates", verb)
		}
		if err := c.calls(t, replica); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func TestCertificatesFail(t *testing.T) {
	c := newCluster()
	if err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.Background(), webhookConfiguration, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	replica := c.replica()
	if err := replica.refresh(context.Background()); err == nil || !strings.Contains(err.Error(), "ValidatingWebhookConfiguration "+webhookConfiguration) || replica.known.Load() || replica.serving.Load() == nil {
		t.Errorf("no configuration: %v", err)
	}
	c.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("forbidden")
	})
	if err := c.replica().refresh(context.Background()); err == nil || !strings.Contains(err.Error(), "certificates: forbidden") {
		t.Errorf("no right to the Secret: %v", err)
	}
}
