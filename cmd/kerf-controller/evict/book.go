package evict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// BookName is the ConfigMap with the history, for the next leader, and with the status, for people.
const BookName = "kerf-evictions"

// ResetAnnotation on it shuts the breaker; its value says who does it and why.
const ResetAnnotation = "kerf.dev/reset-breaker"

// Keys of the ConfigMap.
const (
	keyHistory = "history.json"
	keyStatus  = "status"
	keyUndo    = "undo"
)

// errRival is that somebody else has written the history since.
var errRival = errors.New("another controller has written the history of evictions; its history counts")

// book is the history as it is kept.
type book struct {
	client    kubernetes.Interface
	namespace string
	object    *corev1.ConfigMap // as last read or written; nil: not read
}

// read is what is on record. A history that cannot be read is an error: to go on without it would forget what was moved.
func (b *book) read(ctx context.Context) (h History, err error) {
	if b.object == nil {
		if b.object, err = b.fetch(ctx); err != nil {
			return h, err
		}
	}
	text := b.object.Data[keyHistory]
	if text == "" {
		return h, nil
	}
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		b.object = nil
		return h, fmt.Errorf("ConfigMap %s/%s: %s: %w; nothing is moved; repair it, or delete it to begin with empty budgets", b.namespace, BookName, keyHistory, err)
	}
	return h, nil
}

func (b *book) fetch(ctx context.Context) (*corev1.ConfigMap, error) {
	maps := b.client.CoreV1().ConfigMaps(b.namespace)
	object, err := maps.Get(ctx, BookName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		object, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: BookName, Namespace: b.namespace}}, metav1.CreateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("read the history of evictions: %w", err)
	}
	return object, nil
}

// write puts the history on record if nobody else has since. A person's annotation in between is no rival.
func (b *book) write(ctx context.Context, h History, status, undo string, without ...string) error {
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode the history of evictions: %w", err)
	}
	for {
		data := map[string]string{keyHistory: string(text), keyStatus: status, keyUndo: undo}
		next := b.object.DeepCopy()
		next.Data = data
		for _, key := range without {
			delete(next.Annotations, key)
		}
		if maps.Equal(b.object.Data, data) && maps.Equal(b.object.Annotations, next.Annotations) {
			return nil
		}
		written, err := b.client.CoreV1().ConfigMaps(b.namespace).Update(ctx, next, metav1.UpdateOptions{})
		if err == nil {
			b.object = written
			return nil
		}
		if !apierrors.IsConflict(err) {
			b.object = nil
			return fmt.Errorf("write the history of evictions: %w", err)
		}
		fresh, err := b.fetch(ctx)
		if err != nil {
			b.object = nil
			return err
		}
		if fresh.Data[keyHistory] != b.object.Data[keyHistory] {
			b.object = nil
			return errRival
		}
		b.object = fresh
	}
}
