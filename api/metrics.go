package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// durations is Pulp's histogram of how long requests took. nil: nobody asks for it.
type durations struct {
	histogram metric.Float64Histogram
	worker    attribute.KeyValue
}

// newDurations makes the histogram for the process of that name; with a nil meter there is none.
func newDurations(meter metric.Meter, name string) (*durations, error) {
	if meter == nil {
		return nil, nil //nolint:nilnil // nobody asks for it
	}
	h, err := meter.Float64Histogram("api.request_duration",
		metric.WithUnit("ms"), metric.WithDescription("Tracks the duration of HTTP requests"))
	if err != nil {
		return nil, fmt.Errorf("make histogram: %w", err)
	}
	return &durations{histogram: h, worker: attribute.String("worker.name", name)}, nil
}

// methods are those that are told apart: a client may send any word.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	http.MethodOptions, http.MethodConnect, http.MethodTrace,
}

// record notes a request that the server has answered. As in Pulp, the path is that of the route, and left out of errors.
func (d *durations) record(r *http.Request, status int, took time.Duration) {
	if d == nil {
		return
	}
	method, target := r.Method, ""
	if !slices.Contains(methods, method) {
		method = "_OTHER" // of OpenTelemetry's semantic conventions
	}
	if status <= http.StatusBadRequest {
		target = strings.TrimSuffix(r.Pattern, "{$}")
	}
	d.histogram.Record(r.Context(), float64(took)/float64(time.Millisecond), metric.WithAttributes(
		attribute.String("http.method", method),
		attribute.String("http.status_code", fmt.Sprintf("%dxx", status/100)),
		attribute.String("http.target", target), d.worker))
}
