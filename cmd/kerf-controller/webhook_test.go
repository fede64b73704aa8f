package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func mustQuantity(s string) resource.Quantity { return resource.MustParse(s) }

// review is what the API server sends; pod is the pod's JSON.
const review = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",
"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
"requestKind":{"group":"","version":"v1","kind":"Pod"},"requestResource":{"group":"","version":"v1","resource":"pods"},
"namespace":"team","operation":"CREATE","userInfo":{"username":"system:serviceaccount:kube-system:replicaset-controller"},
"object":%s,"oldObject":null,"dryRun":%t,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`

const hamiPod = `{"kind":"Pod","apiVersion":"v1","metadata":{"generateName":"train-6d4cf56db6-","creationTimestamp":null,"labels":{"app":"train"}},
"spec":{"containers":[{"name":"main","image":"train","resources":{"limits":{"nvidia.com/gpu":"1","nvidia.com/gpumem":"8k","nvidia.com/gpucores":"30"},
"requests":{"nvidia.com/gpu":"1","nvidia.com/gpumem":"8k","nvidia.com/gpucores":"30"},"aFieldOfTheFuture":true}}],"restartPolicy":"Always"},"status":{}}`

type endpoint struct {
	client *fake.Clientset
	server *httptest.Server
}

func serveWebhooks(t *testing.T) endpoint {
	client := fake.NewClientset()
	m, _ := newMetrics(&certificates{})
	server := httptest.NewServer(webhooks(client, m, slog.New(slog.NewTextHandler(io.Discard, nil))))
	t.Cleanup(server.Close)
	return endpoint{client, server}
}

func (e endpoint) post(t *testing.T, path, body string) (status int, answer string) {
	t.Helper()
	response, err := http.Post(e.server.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func (e endpoint) review(t *testing.T, path, body string) *admissionv1.AdmissionResponse {
	t.Helper()
	status, text := e.post(t, path, body)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(text), &answer); status != http.StatusOK || err != nil {
		t.Fatalf("%d %s", status, text)
	}
	if answer.APIVersion != "admission.k8s.io/v1" || answer.Kind != "AdmissionReview" || answer.Response.UID != "705ab4f5-6393-11e8-b7cc-42010a800002" {
		t.Fatalf("not the answer to that: %s", text)
	}
	return answer.Response
}

func (e endpoint) templates(t *testing.T) int {
	t.Helper()
	list, err := e.client.ResourceV1().ResourceClaimTemplates("team").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

func TestMutatePods(t *testing.T) {
	e := serveWebhooks(t)
	dry := e.review(t, "/mutate-pods", fmt.Sprintf(review, hamiPod, true))
	if n := e.templates(t); n != 0 || len(e.client.Actions()) != 1 {
		t.Errorf("a dry run left %d templates, after %v", n, e.client.Actions())
	}
	real := e.review(t, "/mutate-pods", fmt.Sprintf(review, hamiPod, false))
	again := e.review(t, "/mutate-pods", fmt.Sprintf(review, hamiPod, false))
	if n := e.templates(t); n != 1 {
		t.Errorf("%d templates for two equal pods", n)
	}
	if string(dry.Patch) != string(real.Patch) || string(again.Patch) != string(real.Patch) {
		t.Errorf("three patches for one pod:\n%s\n%s\n%s", dry.Patch, real.Patch, again.Patch)
	}
	want := `[{"op":"remove","path":"/spec/containers/0/resources/limits/nvidia.com~1gpu"},` +
		`{"op":"remove","path":"/spec/containers/0/resources/limits/nvidia.com~1gpumem"},` +
		`{"op":"remove","path":"/spec/containers/0/resources/limits/nvidia.com~1gpucores"},` +
		`{"op":"remove","path":"/spec/containers/0/resources/requests/nvidia.com~1gpu"},` +
		`{"op":"remove","path":"/spec/containers/0/resources/requests/nvidia.com~1gpumem"},` +
		`{"op":"remove","path":"/spec/containers/0/resources/requests/nvidia.com~1gpucores"},` +
		`{"op":"add","path":"/spec/resourceClaims","value":[{"name":"kerf","resourceClaimTemplateName":"` + templateOf(t, "main: gpu=1 gpumem=8000 gpucores=30").Name + `"}]},` +
		`{"op":"add","path":"/spec/containers/0/resources/claims","value":[{"name":"kerf","request":"gpu-0"}]}]`
	if !real.Allowed || real.PatchType == nil || *real.PatchType != admissionv1.PatchTypeJSONPatch || string(real.Patch) != want {
		t.Errorf("%v\n got %s\nwant %s", real, real.Patch, want)
	}
}

func TestMutatePodsAnswers(t *testing.T) {
	plain := `{"metadata":{"name":"x"},"spec":{"containers":[{"name":"main"}]}}`
	for _, tt := range []struct {
		name, body string
		allowed    bool
		message    string
	}{
		{"nothing of ours", fmt.Sprintf(review, plain, false), true, ""},
		{"an update", strings.Replace(fmt.Sprintf(review, hamiPod, false), "CREATE", "UPDATE", 1), true, ""},
		{"another resource", strings.ReplaceAll(fmt.Sprintf(review, hamiPod, false), `"resource":"pods"`, `"resource":"nodes"`), true, ""},
		{"a subresource", strings.Replace(fmt.Sprintf(review, hamiPod, false), `"namespace"`, `"subResource":"ephemeralcontainers","namespace"`, 1), true, ""},
		{"refused", fmt.Sprintf(review, strings.ReplaceAll(hamiPod, `"8k"`, `"16Gi"`), false), false, `kerf: container "main": nvidia.com/gpumem 16Gi`},
		{"refused with a long name", fmt.Sprintf(review, strings.Replace(hamiPod, `"labels"`, `"annotations":{"nvidia.com/use-gputype":"`+strings.Repeat("é", 9000)+`"},"labels"`, 1), false), false, "annotation nvidia.com/use-gputype"},
	} {
		e := serveWebhooks(t)
		answer := e.review(t, "/mutate-pods", tt.body)
		if answer.Allowed != tt.allowed || len(answer.Patch) != 0 {
			t.Errorf("%s: allowed %v, patch %s", tt.name, answer.Allowed, answer.Patch)
		}
		if !tt.allowed && (answer.Result == nil || answer.Result.Code != 422 || !strings.Contains(answer.Result.Message, tt.message) || len(answer.Result.Message) > maxMessage) {
			t.Errorf("%s: %v", tt.name, answer.Result)
		}
		if n := e.templates(t); n != 0 {
			t.Errorf("%s: %d templates", tt.name, n)
		}
	}
}

func TestNotReviews(t *testing.T) {
	e := serveWebhooks(t)
	for _, tt := range []struct {
		name, body string
		status     int
	}{
		{"nothing", "", 400},
		{"no JSON", "{", 400},
		{"another kind", `{"kind":"Pod","apiVersion":"v1"}`, 400},
		{"an old version", strings.Replace(fmt.Sprintf(review, hamiPod, false), "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), 400},
		{"no request", `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, 400},
		{"too large", `{"kind":"` + strings.Repeat("x", maxReview) + `"}`, 400},
		{"no pod", fmt.Sprintf(review, `[]`, false), 500},
		{"a pod of other types", fmt.Sprintf(review, `{"spec":{"containers":"none"}}`, false), 500},
		{"limits that are no quantities", fmt.Sprintf(review, strings.ReplaceAll(hamiPod, `"8k"`, `"much"`), false), 500},
		{"null", fmt.Sprintf(review, `null`, false), 500},
	} {
		if status, text := e.post(t, "/mutate-pods", tt.body); status != tt.status {
			t.Errorf("%s: %d %s", tt.name, status, text)
		}
	}
	response, err := http.Get(e.server.URL + "/mutate-pods")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 400 {
		t.Errorf("GET: %d", response.StatusCode)
	}
}

// A panic is an HTTP error, so that the failure policy decides, and the next review is answered.
func TestPanic(t *testing.T) {
	m, _ := newMetrics(&certificates{})
	handler := reviewer("x", func(*http.Request, *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
		panic("here")
	}, newRoom(), m, slog.New(slog.NewTextHandler(io.Discard, nil)))
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest("POST", "/", strings.NewReader(fmt.Sprintf(review, hamiPod, false)))
	request.Header.Set("Content-Type", "application/json")
	handler.ServeHTTP(recorder, request)
	if recorder.Code != 500 || strings.Contains(recorder.Body.String(), "here") {
		t.Errorf("%d %s", recorder.Code, recorder.Body)
	}
}

func TestValidateConfig(t *testing.T) {
	e := serveWebhooks(t)
	body := func(resource, object, old string) string {
		operation := "CREATE"
		if old != "null" {
			operation = "UPDATE"
		}
		return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",
"resource":{"group":"resource.k8s.io","version":"v1","resource":%q},"operation":%q,"object":%s,"oldObject":%s}}`, resource, operation, object, old)
	}
	config := func(driver, parameters string) string {
		return fmt.Sprintf(`[{"opaque":{"driver":"other","parameters":{"x":1}}},{"requests":["a"]},{"opaque":{"driver":%q,"parameters":%s}}]`, driver, parameters)
	}
	claim := func(c string) string { return `{"spec":{"devices":{"requests":[],"config":` + c + `}}}` }
	template := func(c string) string { return `{"spec":{"spec":{"devices":{"config":` + c + `}}}}` }
	class := func(c string) string { return `{"spec":{"selectors":[],"config":` + c + `}}` }
	share := func(fields string) string {
		return `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig"` + fields + `}`
	}
	good, bad := config(driverName, share(`,"burst":false`)), config(driverName, share(`,"bursts":false`))
	for _, tt := range []struct {
		name, body, want string
	}{
		{"a good claim", body("resourceclaims", claim(good), "null"), ""},
		{"a good template", body("resourceclaimtemplates", template(good), "null"), ""},
		{"a good class", body("deviceclasses", class(good), "null"), ""},
		{"no config", body("resourceclaims", `{"spec":{}}`, "null"), ""},
		{"another driver's", body("resourceclaims", claim(config("gpu.example.com", `{"kind":"ShareConfig"}`)), "null"), ""},
		{"another resource", body("resourceslices", claim(bad), "null"), ""},
		{"a bad claim", body("resourceclaims", claim(bad), "null"), "spec.devices.config[2].opaque.parameters: ShareConfig: bursts: no such field"},
		{"a bad template", body("resourceclaimtemplates", template(bad), "null"), "spec.spec.devices.config[2].opaque.parameters: ShareConfig: bursts"},
		{"a bad class", body("deviceclasses", class(bad), "null"), "spec.config[2].opaque.parameters: ShareConfig: bursts"},
		{"null parameters", body("resourceclaims", claim(config(driverName, `null`)), "null"), "ShareConfig"},
		{"a list", body("resourceclaims", claim(config(driverName, `[]`)), "null"), "ShareConfig"},
		{"no kind", body("resourceclaims", claim(config(driverName, `{}`)), "null"), "ShareConfig: apiVersion: missing"},
		{"bad before already", body("resourceclaims", claim(bad), claim(bad)), ""},
		{"bad since", body("deviceclasses", class(bad), class(good)), "bursts: no such field"},
		{"removed", body("resourceclaims", "null", claim(bad)), ""},
		{"parameters are missing", body("resourceclaims", claim(`[{"opaque":{"driver":"gpu.kerf.dev"}}]`), "null"), "ShareConfig"},
	} {
		answer := e.review(t, "/validate-config", tt.body)
		if answer.Allowed != (tt.want == "") || !answer.Allowed && !strings.Contains(answer.Result.Message, tt.want) {
			t.Errorf("%s: %v %v, want %q", tt.name, answer.Allowed, answer.Result, tt.want)
		}
	}
}

func FuzzReview(f *testing.F) {
	f.Add(fmt.Sprintf(review, hamiPod, false))
	f.Add(base64.StdEncoding.EncodeToString([]byte(review)))
	m, _ := newMetrics(&certificates{})
	handler := webhooks(fake.NewClientset(), m, slog.New(slog.NewTextHandler(io.Discard, nil)))
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/mutate-pods", "/validate-config"} {
			recorder := httptest.NewRecorder()
			request := httptest.NewRequest("POST", path, strings.NewReader(body))
			request.Header.Set("Content-Type", "application/json")
			handler.ServeHTTP(recorder, request)
			if strings.Contains(recorder.Body.String(), "a fault of kerf-controller's") {
				t.Fatal("panic")
			}
		}
	})
}

func TestHealth(t *testing.T) {
	c := newCluster()
	certs := c.replica()
	m, registry := newMetrics(certs)
	m.requests.WithLabelValues("x", "allowed").Inc()
	server := httptest.NewServer(health(certs.ready, registry))
	defer server.Close()
	get := func(path string) (int, string) {
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(text)
	}
	if code, text := get("/readyz"); code != 503 || !strings.Contains(text, "no certificate yet") {
		t.Errorf("ready before there is a certificate: %d %s", code, text)
	}
	refresh(t, certs)
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, text := get(path); code != 200 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	_, text := get("/metrics")
	for _, metric := range []string{"kerf_controller_reviews_total", "kerf_controller_templates_removed_total", "kerf_controller_certificate_expiry_seconds 1.8"} {
		if !strings.Contains(text, metric) {
			t.Errorf("no %s in\n%s", metric, text)
		}
	}
}

// Reviews wait for room by their size, large ones in a room of their own, and not for ever.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		enter := func(size int64) (func(), error) {
			return r.enter((&http.Request{ContentLength: size}).WithContext(t.Context()))
		}
		var leave []func()
		for _, size := range []int64{maxReview, -1} {
			l, err := enter(size)
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		start := time.Now()
		if _, err := enter(1 << 40); err == nil || !strings.Contains(err.Error(), "too many reviews at once") || time.Since(start) != enterWithin {
			t.Errorf("a third large one: %v after %s", err, time.Since(start))
		}
		for range roomSmall / smallReview {
			if _, err := enter(smallReview); err != nil {
				t.Fatal("a small one beside large ones:", err)
			}
		}
		if _, err := enter(smallReview); err == nil {
			t.Error("small ones without end")
		}
		leave[0]()
		if _, err := enter(maxReview); err != nil {
			t.Error("room that was given back:", err)
		}
	})
}
