package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// Names of what the chart installs, and of what is kept here.
const (
	webhookConfiguration = "kerf-controller.kerf.dev" // of both kinds
	serviceName          = "kerf-controller"
	secretName           = "kerf-controller-tls"
)

// certificates keeps the webhooks' certificates: in a Secret that all replicas share, in the webhook configurations, and in use.
type certificates struct {
	client    kubernetes.Interface
	namespace string
	now       func() time.Time
	log       *slog.Logger

	serving atomic.Pointer[tls.Certificate]
	known   atomic.Bool // the API server has been told of it
}

// names are those under which the API server calls.
func (c *certificates) names() []string {
	return []string{serviceName + "." + c.namespace + ".svc", serviceName + "." + c.namespace + ".svc.cluster.local"}
}

// get is for tls.Config.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if pair := c.serving.Load(); pair != nil {
		return pair, nil
	}
	return nil, errors.New("no certificate yet")
}

// refresh makes what is missing or due, and takes it into use. The API server is told before: what it trusts has the old authority in
// it too, so there is no moment at which it refuses any replica.
func (c *certificates) refresh(ctx context.Context) error {
	current, err := c.shared(ctx)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	pair, err := current.pair()
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	announced := c.announce(ctx, current.ca)
	if announced == nil || c.serving.Load() == nil { // one that nobody trusts yet is better than none
		c.serving.Store(pair)
	}
	c.known.Store(announced == nil)
	return announced
}

// shared reads the Secret, and writes it where it must be. Whoever is second finds a conflict, and reads what the first wrote.
func (c *certificates) shared(ctx context.Context) (current keys, err error) {
	secrets := c.client.CoreV1().Secrets(c.namespace)
	err = retry.OnError(retry.DefaultRetry, again, func() error {
		secret, err := secrets.Get(ctx, secretName, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		missing := err != nil
		if missing {
			secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretName, Namespace: c.namespace}, Type: corev1.SecretTypeTLS}
		}
		current = keysOf(secret)
		all, serving := current.check(c.names(), c.now())
		if all == nil && serving == nil {
			return nil
		}
		c.log.Info("making certificates", "why", errors.Join(all, serving), "first", missing)
		if current, err = current.renew(c.names(), c.now()); err != nil {
			return err
		}
		secret.Data = map[string][]byte{"ca.crt": current.ca, "ca.key": current.caKey, corev1.TLSCertKey: current.cert, corev1.TLSPrivateKeyKey: current.key}
		if missing {
			_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
		} else {
			_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
		}
		return err
	})
	return current, err
}

func keysOf(secret *corev1.Secret) keys {
	return keys{ca: secret.Data["ca.crt"], caKey: secret.Data["ca.key"], cert: secret.Data[corev1.TLSCertKey], key: secret.Data[corev1.TLSPrivateKeyKey]}
}

// announce writes the authority into both webhook configurations, where it is not there yet.
func (c *certificates) announce(ctx context.Context, ca []byte) error {
	return errors.Join(
		retry.OnError(retry.DefaultRetry, apierrors.IsConflict, func() error { return c.announceMutating(ctx, ca) }),
		retry.OnError(retry.DefaultRetry, apierrors.IsConflict, func() error { return c.announceValidating(ctx, ca) }),
	)
}

func (c *certificates) announceMutating(ctx context.Context, ca []byte) error {
	client := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	found, err := client.Get(ctx, webhookConfiguration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("MutatingWebhookConfiguration %s: %w", webhookConfiguration, err)
	}
	changed := false
	for i := range found.Webhooks {
		changed = setBundle(&found.Webhooks[i].ClientConfig.CABundle, ca) || changed
	}
	if changed {
		_, err = client.Update(ctx, found, metav1.UpdateOptions{})
	}
	return err
}

func (c *certificates) announceValidating(ctx context.Context, ca []byte) error {
	client := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	found, err := client.Get(ctx, webhookConfiguration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("ValidatingWebhookConfiguration %s: %w", webhookConfiguration, err)
	}
	changed := false
	for i := range found.Webhooks {
		changed = setBundle(&found.Webhooks[i].ClientConfig.CABundle, ca) || changed
	}
	if changed {
		_, err = client.Update(ctx, found, metav1.UpdateOptions{})
	}
	return err
}

func setBundle(bundle *[]byte, ca []byte) (changed bool) {
	if bytes.Equal(*bundle, ca) {
		return false
	}
	*bundle = ca
	return true
}
