package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxReview bounds a request: an object and its old self, each of at most 1.5 MiB in etcd.
const maxReview = 8 << 20

// maxMessage is what fits an event, with room for what the API server writes before it.
const maxMessage = 900

// roomSmall and roomLarge bound the requests that are judged at once, in bytes; decoded, each is some times that. Large ones, which anybody
// who can write a large object may send in numbers, do not hold up the others.
const (
	smallReview = 256 << 10
	roomSmall   = 8 << 20
	roomLarge   = 2 * maxReview
)

// enterWithin and readWithin bound the wait for room and for the body; the API server waits 10 s for an answer.
const (
	enterWithin = 5 * time.Second
	readWithin  = 5 * time.Second
)

// room is what reviews may take of the memory.
type room struct {
	small, large *semaphore.Weighted
}

func newRoom() *room {
	return &room{small: semaphore.NewWeighted(roomSmall), large: semaphore.NewWeighted(roomLarge)}
}

// enter waits for room for a request's body. leave gives it back.
func (r *room) enter(request *http.Request) (leave func(), err error) {
	size := request.ContentLength
	if size < 0 || size > maxReview {
		size = maxReview // reading ends there
	}
	of := r.small
	if size > smallReview {
		of = r.large
	}
	ctx, cancel := context.WithTimeout(request.Context(), enterWithin)
	defer cancel()
	if err := of.Acquire(ctx, size); err != nil {
		return nil, fmt.Errorf("too many reviews at once: no room for one of %d bytes within %s; try again", size, enterWithin)
	}
	return func() { of.Release(size) }, nil
}

// webhook answers one kind of review. An error means that it could not be judged; a refusal is an answer.
type webhook func(*http.Request, *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error)

// reviewer wraps a webhook in the protocol. A panic, or a request that is not one, is an HTTP error: the API server
// then does what the failure policy says.
func reviewer(name string, handle webhook, room *room, m *metrics, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		outcome := "error"
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic", "webhook", name, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, "a fault of kerf-controller's; its log says more", http.StatusInternalServerError)
			}
			m.requests.WithLabelValues(name, outcome).Inc()
		}()
		leave, err := room.enter(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer leave()
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readWithin)) // who sends slowly has the room meanwhile
		request, err := readReview(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		response, err := handle(r, request)
		if err != nil {
			log.Warn("review failed", "webhook", name, "namespace", request.Namespace, "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		outcome = outcomeOf(response)
		response.UID = request.UID
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{ // the API server may be gone
			TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Response: response,
		})
	})
}

func readReview(r *http.Request) (*admissionv1.AdmissionRequest, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method != http.MethodPost || err != nil || kind != "application/json" {
		return nil, errors.New("not an admission review: POST one as application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxReview))
	if err != nil {
		return nil, fmt.Errorf("read admission review: %w", err)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("admission review: %w", err)
	}
	if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || review.Request == nil || review.Request.UID == "" {
		return nil, fmt.Errorf("admission review: %s %s is not a request of admission.k8s.io/v1", clip(review.APIVersion), clip(review.Kind))
	}
	return review.Request, nil
}

func allowed(warnings ...string) *admissionv1.AdmissionResponse {
	for i, w := range warnings {
		warnings[i] = strings.ToValidUTF8(w[:min(len(w), 250)], "") // the API server cuts longer ones
	}
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}

func refused(err error) *admissionv1.AdmissionResponse {
	message := err.Error()
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Message: strings.ToValidUTF8(message[:min(len(message), maxMessage)], ""),
		Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity,
	}}
}

func outcomeOf(r *admissionv1.AdmissionResponse) string {
	switch {
	case !r.Allowed:
		return "refused"
	case len(r.Patch) > 0:
		return "changed"
	}
	return "allowed"
}
