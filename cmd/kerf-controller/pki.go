package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// How long certificates hold, and what must be left of that.
const (
	caFor      = 10 * 365 * 24 * time.Hour
	caLeft     = 365 * 24 * time.Hour
	servingFor = 90 * 24 * time.Hour
	left       = 30 * 24 * time.Hour
	skew       = time.Hour // clocks of nodes differ
)

// keys is what the Secret holds, all as PEM.
type keys struct {
	ca    []byte // what the API server trusts: the authority in use first, then the one before it
	caKey []byte
	cert  []byte
	key   []byte
}

// check says why keys must be made anew: all of them, or the serving certificate only. Both nil: they are good.
func (k keys) check(names []string, now time.Time) (all, serving error) {
	ca, _, err := k.authority()
	if err != nil {
		return err, nil
	}
	if err := holds(ca, now, caLeft); err != nil {
		return fmt.Errorf("authority: %w", err), nil
	}
	pair, err := k.pair()
	if err != nil {
		return nil, err
	}
	if err := holds(pair.Leaf, now, left); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, name := range names {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
	}
	return nil, nil
}

func holds(c *x509.Certificate, now time.Time, left time.Duration) error {
	if now.Before(c.NotBefore) {
		return fmt.Errorf("it holds from %s only", c.NotBefore.Format(time.RFC3339))
	}
	if c.NotAfter.Sub(now) < left {
		return fmt.Errorf("it holds until %s", c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// renew makes what check found missing. A new authority is put in front of the old one, which is still believed: other
// replicas serve with its certificate until they have read the Secret.
func (k keys) renew(names []string, now time.Time) (keys, error) {
	all, _ := k.check(names, now)
	if all != nil {
		fresh, err := newAuthority(now)
		if err != nil {
			return keys{}, fmt.Errorf("make authority: %w", err)
		}
		if old, _, err := k.authority(); err == nil && now.Before(old.NotAfter) {
			fresh.ca = append(fresh.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Raw})...)
		}
		k = fresh
	}
	ca, caKey, err := k.authority()
	if err != nil {
		return keys{}, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: now.Add(-skew), NotAfter: now.Add(servingFor),
	}
	if k.cert, k.key, err = issue(template, ca, caKey); err != nil {
		return keys{}, fmt.Errorf("make certificate: %w", err)
	}
	return k, nil
}

func newAuthority(now time.Time) (k keys, err error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "kerf-controller " + now.UTC().Format("2006-01-02")}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-skew), NotAfter: now.Add(caFor),
	}
	k.ca, k.caKey, err = issue(template, nil, nil)
	return k, err
}

// issue signs a certificate for a new key; without a parent, with that key.
func issue(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (cert, key []byte, err error) {
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, signer = template, fresh
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &fresh.PublicKey, signer)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalECPrivateKey(fresh)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), nil
}

// authority is the one in use, with its key.
func (k keys) authority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(k.ca)
	keyBlock, _ := pem.Decode(k.caKey)
	if block == nil || keyBlock == nil {
		return nil, nil, errors.New("authority: not there, or not PEM")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: %w", err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("authority's key: %w", err)
	}
	if public, ok := ca.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		return nil, nil, errors.New("authority: its key is another's")
	}
	return ca, key, nil
}

// pair is what the server serves with.
func (k keys) pair() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(k.cert, k.key)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return &pair, nil
}
