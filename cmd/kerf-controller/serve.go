package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kerf-gpu/kerf/cmd/kerf-controller/evict"
)

// How often the background work is done.
const (
	refreshEvery = time.Minute
	collectEvery = 10 * time.Minute
)

// callTimeout bounds one round of background work.
const callTimeout = time.Minute

// metrics is every metric of this program.
type metrics struct {
	requests *prometheus.CounterVec
	removed  prometheus.Counter
	expiry   prometheus.GaugeFunc
	failures *prometheus.CounterVec
}

func newMetrics(certs *certificates) (*metrics, *prometheus.Registry) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kerf_controller_reviews_total",
			Help: "Admission reviews, by webhook and outcome: allowed, changed, refused, error."}, []string{"webhook", "outcome"}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{Name: "kerf_controller_templates_removed_total",
			Help: "ResourceClaimTemplates that no pod used any more."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kerf_controller_failures_total",
			Help: "Failed rounds of background work: certificates, collection."}, []string{"work"}),
		expiry: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kerf_controller_certificate_expiry_seconds",
			Help: "When the certificate in use ends, as Unix time; 0 before there is one."}, func() float64 {
			if pair := certs.serving.Load(); pair != nil {
				return float64(pair.Leaf.NotAfter.Unix())
			}
			return 0
		}),
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests, m.removed, m.failures, m.expiry)
	return m, registry
}

func newClients(kubeconfig string) (kubernetes.Interface, metadata.Interface, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reach the API server: %w; give --kubeconfig outside a pod", err)
	}
	config.QPS, config.Burst = 100, 200 // one or two calls for every pod that is admitted
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	config = rest.CopyConfig(config)
	config.AcceptContentTypes, config.ContentType = runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON, runtime.ContentTypeProtobuf // smaller
	client, err := kubernetes.NewForConfig(config)
	return client, meta, err
}

// serve runs everything until the context ends. A part that ends before is a failure of the whole.
func serve(ctx context.Context, f flags, log *slog.Logger) error {
	client, meta, err := newClients(f.kubeconfig)
	if err != nil {
		return err
	}
	certs := &certificates{client: client, namespace: f.namespace, now: time.Now, log: log}
	m, registry := newMetrics(certs)
	ready := certs.ready
	var parts []func(context.Context) error
	if f.webhooks {
		parts = admission(client, meta, certs, m, f, log)
	} else {
		ready = func() bool { return true }
	}
	if f.evictions.Mode != evict.ModeOff {
		name, err := os.Hostname() // the pod's
		if err != nil {
			return err
		}
		c, err := evict.New(evict.Config{Client: client, Namespace: f.namespace, Identity: name, Policy: f.evictions, Log: log, Now: time.Now}, registry)
		if err != nil {
			return err
		}
		parts = append(parts, c.Run)
	}
	if len(parts) == 0 {
		return errors.New("there is nothing to do: --webhooks=false and --evictions=off; switch one on")
	}
	return together(ctx, append(parts, listener(&http.Server{Addr: f.health, Handler: health(ready, registry)})))
}

// admission is what the webhooks need.
func admission(client kubernetes.Interface, meta metadata.Interface, certs *certificates, m *metrics, f flags, log *slog.Logger) []func(context.Context) error {
	return []func(context.Context) error{
		listener(&http.Server{Addr: f.listen, Handler: webhooks(client, m, log),
			TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get}}),
		repeat(refreshEvery, "certificates", m, log, certs.refresh),
		repeat(collectEvery, "collection", m, log, func(ctx context.Context) error {
			removed, err := collect(ctx, client, meta, time.Now())
			m.removed.Add(float64(removed))
			return err
		}),
	}
}

// together runs parts until the context, or one of them, ends.
func together(ctx context.Context, parts []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			defer cancel()
			ends <- part(ctx)
		}()
	}
	var errs []error
	for range parts {
		errs = append(errs, <-ends)
	}
	return errors.Join(errs...)
}

func webhooks(client kubernetes.Interface, m *metrics, log *slog.Logger) http.Handler {
	pods := &podWebhook{client: client, sizes: &sizes{client: client, now: time.Now}, now: time.Now, log: log}
	mux, room := http.NewServeMux(), newRoom()
	mux.Handle("/mutate-pods", reviewer("mutate-pods", pods.handle, room, m, log))
	mux.Handle("/validate-config", reviewer("validate-config", validateConfigs, room, m, log))
	return mux
}

// health is ready when the API server can reach the webhooks: there is a certificate, and it was told of it.
func health(ready func() bool, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "no certificate yet, or the webhook configurations do not have it; the log says why", http.StatusServiceUnavailable)
		}
	})
	return mux
}

func (c *certificates) ready() bool { return c.serving.Load() != nil && c.known.Load() }

// listener serves until the context ends, with TLS where there is a configuration for it.
func listener(server *http.Server) func(context.Context) error {
	server.ReadTimeout, server.WriteTimeout, server.IdleTimeout = 30*time.Second, 30*time.Second, 2*time.Minute
	return func(ctx context.Context) error {
		ended := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(ended)
			bounded, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = server.Shutdown(bounded)
		})
		listen := server.ListenAndServe
		if server.TLSConfig != nil {
			listen = func() error { return server.ListenAndServeTLS("", "") }
		}
		err := listen()
		if !stop() {
			<-ended // the last answers are still on their way
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve %s: %w", server.Addr, err)
	}
}

// repeat does something at once and again and again. A failure, or a panic, is logged when it is another than the last, and tried again.
func repeat(every time.Duration, name string, m *metrics, log *slog.Logger, do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		last := ""
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			err := attempt(ctx, do)
			if err != nil && ctx.Err() == nil {
				m.failures.WithLabelValues(name).Inc()
				if err.Error() != last {
					log.Error("background work failed; it is tried again", "work", name, "again", every, "err", err)
				}
				last = err.Error()
			}
			wait := tick.C
			if err != nil {
				wait = time.After(min(every, 5*time.Second))
			} else {
				last = ""
			}
			select {
			case <-ctx.Done():
				return nil
			case <-wait:
			}
		}
	}
}

func attempt(ctx context.Context, do func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return do(ctx)
}
