package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
)

// collected is a collector of metrics, and its address.
type collected struct {
	url string

	mu  sync.Mutex
	got []string // SERVICE METER METRIC UNIT, each once
	err error
}

func newCollector(t *testing.T) *collected {
	t.Helper()
	c := &collected{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := c.collect(r)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = err
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *collected) collect(r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/metrics" {
		return fmt.Errorf("%s %s", r.Method, r.URL.Path)
	}
	var all collector.ExportMetricsServiceRequest
	if err := proto.Unmarshal(body, &all); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range all.GetResourceMetrics() {
		about := map[string]string{}
		for _, a := range resource.GetResource().GetAttributes() {
			about[a.GetKey()] = a.GetValue().GetStringValue()
		}
		if about["service.version"] != builtin.Version {
			return fmt.Errorf("resource %v", about)
		}
		for _, scope := range resource.GetScopeMetrics() {
			for _, m := range scope.GetMetrics() {
				line := strings.Join([]string{about["service.name"], scope.GetScope().GetName(), m.GetName(), m.GetUnit()}, " ")
				for _, p := range m.GetHistogram().GetDataPoints() {
					line += " " + words(p.GetAttributes())
				}
				for _, p := range m.GetGauge().GetDataPoints() {
					line += fmt.Sprintf(" %d", p.GetAsInt())
				}
				if !slices.Contains(c.got, line) {
					c.got = append(c.got, line)
				}
			}
		}
	}
	return nil
}

// words are the values of attributes, by name.
func words(list []*common.KeyValue) string {
	slices.SortFunc(list, func(a, b *common.KeyValue) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	var out []string
	for _, a := range list {
		out = append(out, a.GetValue().GetStringValue())
	}
	return strings.Join(out, ",")
}

// has reports whether a metric has come.
func (c *collected) has(line string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.got, line), c.err
}

func TestProcessesPushPulpsMetrics(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	c := newCollector(t)
	environment := append(environ(db.URL), "PITH_OTEL_ENABLED=true", "OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "OTEL_METRIC_EXPORT_INTERVAL=100")
	// No worker may run this one.
	must(t, db.URL, "task", "dispatch", sleepTask, "--args", `{"interval": 0}`, "--versions", "core=999")
	if _, err := db.Direct.Exec(t.Context(), "UPDATE task SET unblocked_at = now() - interval '1 minute'"); err != nil {
		t.Fatal(err)
	}
	worker, workerLog := startIn(t, environment, "worker", "--ttl=1s")
	dbtest.Until(t, "the queue is measured", func(context.Context) (bool, error) {
		return c.has("pulp-worker pulp.metrics tasks_unblocked_queue tasks 1")
	})
	api, apiLog := startIn(t, append(environment, "OTEL_METRIC_EXPORT_INTERVAL=3600000"), "api", "--listen=127.0.0.1:0", "--name-template=one")
	if status, body := fetch(t.Context(), "http://"+listenAddress(t, apiLog)+"/pulp/api/v3/livez/", "", ""); status != http.StatusOK {
		t.Fatalf("livez: %d %s", status, body)
	}
	if err := api.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := api.Wait(); err != nil {
		t.Fatalf("%v: %s", err, apiLog)
	}
	// It says at its end what it has not said yet.
	const asked = "pulp-api pulp.metrics api.request_duration ms GET,2xx,/pulp/api/v3/livez/,one"
	if ok, err := c.has(asked); !ok || err != nil {
		t.Errorf("%v, %q", err, c.got)
	}
	if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := worker.Wait(); err != nil {
		t.Errorf("%v: %s", err, workerLog)
	}
}

func TestCollectorThatIsNotThereHindersNobody(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	worker, log := startIn(t, append(environ(db.URL), "PITH_OTEL_ENABLED=true", "OTEL_METRIC_EXPORT_INTERVAL=50",
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="+gone.URL), "worker", "--ttl=1s")
	dbtest.Until(t, "the log tells of it", func(context.Context) (bool, error) {
		return strings.Contains(log.String(), `"msg":"metrics were not sent"`), nil
	})
	task := decode[dispatched](t, must(t, db.URL, "task", "dispatch", sleepTask, "--args", `{"interval": 0}`))
	must(t, db.URL, "task", "wait", task.Task)
	if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := worker.Wait(); err != nil {
		t.Errorf("%v: %s", err, log)
	}
}

func TestAddressOfACollectorIsChecked(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"":                          "http://localhost:4318/v1/metrics",
		"https://collector/base":    "https://collector/base/v1/metrics",
		"collector:4318":            "OTEL_EXPORTER_OTLP_ENDPOINT is no URL such as http://collector:4318",
		"grpc://collector":          "OTEL_EXPORTER_OTLP_ENDPOINT is no URL",
		"http://u:secret@collector": "credentials belong into OTEL_EXPORTER_OTLP_HEADERS",
	} {
		s := &session{environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + value}}
		got, err := s.metricsEndpoint()
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, want) && (err == nil || !strings.Contains(got, want)) || strings.Contains(got, "secret") {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
	for _, command := range []string{"api", "worker"} {
		var out, errOut strings.Builder
		code := run(t.Context(), []string{command, "--otel-enabled"}, strings.NewReader(""), &out, &errOut,
			append(environ("postgres://nobody@127.0.0.1:1/none"), "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=collector"))
		result{code, out.String(), errOut.String()}.wants(t, exitUsage, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is no URL")
	}
}
