package main

import (
	"context"
	"net/url"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/pithworks/pith/internal/builtin"
)

type metricsFlags struct {
	OtelEnabled bool `name:"otel-enabled" help:"Push metrics by OTLP/HTTP. OTEL_EXPORTER_OTLP_ENDPOINT and OpenTelemetry's other variables say where to, and how."`
}

// lastPush bounds how long the end of the program waits for the collector.
const lastPush = 5 * time.Second

// meter makes Pulp's meter for a service, or none if nobody has asked for metrics, and a function that ends it. Measurements are
// pushed every OTEL_METRIC_EXPORT_INTERVAL milliseconds, 60,000 by default, and at the end.
func (s *session) meter(ctx context.Context, flags metricsFlags, service string) (metric.Meter, func(), error) {
	if !flags.OtelEnabled {
		return nil, func() {}, nil
	}
	endpoint, err := s.metricsEndpoint()
	if err != nil {
		return nil, nil, err
	}
	otel.SetLogger(logr.FromSlogHandler(s.log.Handler()))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { s.log.Warn("metrics were not sent", "err", err) }))
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", builtin.Version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, nil, usage("OTEL_RESOURCE_ATTRIBUTES: %v", err)
	}
	exporter, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(endpoint), otlpmetrichttp.WithTemporalitySelector(temporality))
	if err != nil {
		return nil, nil, usage("OpenTelemetry's variables: %v", err)
	}
	provider := sdk.NewMeterProvider(sdk.WithResource(about), sdk.WithReader(sdk.NewPeriodicReader(exporter)))
	s.log.Info("metrics are pushed", "service", service, "endpoint", endpoint)
	return provider.Meter("pulp.metrics"), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastPush)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			s.log.Warn("metrics were not sent", "err", err)
		}
	}, nil
}

// metricsEndpoint is where metrics go, by OpenTelemetry's variables and its default.
func (s *session) metricsEndpoint() (string, error) {
	const whole, base = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
	name, text := whole, s.env(whole)
	if text == "" {
		name, text = base, s.env(base)
	}
	if text == "" {
		text = "http://localhost:4318"
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return "", usage("%s is no URL such as http://collector:4318; credentials belong into OTEL_EXPORTER_OTLP_HEADERS", name)
	}
	if name == base {
		u = u.JoinPath("v1/metrics")
	}
	return u.String(), nil
}

// temporality forgets a gauge once it is pushed: who does not measure the queue any more has nothing to say of it.
func temporality(kind sdk.InstrumentKind) metricdata.Temporality {
	if kind == sdk.InstrumentKindGauge {
		return metricdata.DeltaTemporality
	}
	return metricdata.CumulativeTemporality
}
