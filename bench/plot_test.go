package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var (
	someBars = []barGroup{
		{"50,000 waiting", []bar{{"Pith", 45000, 41000, 47000}, {"River tuned", 15200, 14900, 16100}, {"River defaults", 5200, 5000, 5300}}},
		{"200,000 waiting", []bar{{"Pith", 43000, 42000, 44800}, {"River tuned", 14800, 14100, 15500}, {"floor: claim + complete", 61000, 60000, 62000}}},
	}
	someChart = chart{
		title: "Pick-up", xLabel: "workers", yLabel: "ms", logX: true,
		curves: []curve{{"p50", []float64{1, 20, 200, 1000, 100000}, []float64{10, 10, 11, 9, 10}}, {"p99", []float64{1, 20, 200, 1000, 100000}, []float64{61, 60, 63, 62, 64}}},
		limits: []limit{{"p99 at most 80 ms", 80}},
	}
)

func drawn(t *testing.T, draw func(path string) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "below", "x.svg")
	if err := draw(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
	return string(text)
}

func TestPlotsNameTheirUnitsAndAreRepeatable(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		draw  func(string) error
		names []string
	}{
		"bars":  {func(p string) error { return plotBars(p, "No-op tasks", "tasks/s", someBars) }, []string{"No-op tasks", "tasks/s", "River tuned", "200,000 waiting", ">45,000<", "30,000"}},
		"chart": {func(p string) error { return plotChart(p, someChart) }, []string{"Pick-up", "workers", ">ms<", "p99 at most 80 ms", "10,000"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			once, again := drawn(t, tt.draw), drawn(t, tt.draw)
			if once != again {
				t.Error("drawing twice makes two files")
			}
			for _, n := range append(tt.names, `fill="#FFFFFF"`) {
				if !strings.Contains(once, n) {
					t.Errorf("%q is not in it", n)
				}
			}
		})
	}
}

func TestNothingToPlotIsAnError(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.svg")
	for name, err := range map[string]error{
		"no bars":           plotBars(path, "", "", []barGroup{{name: "empty"}}),
		"bars of 0":         plotBars(path, "", "", []barGroup{{"zero", []bar{{label: "a"}}}}),
		"no curves":         plotChart(path, chart{}),
		"nothing above 0":   plotChart(path, chart{logY: true, curves: []curve{{"c", []float64{1}, []float64{0}}}}),
		"cannot be written": plotBars("/dev/null/x.svg", "t", "u", someBars),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestThousandsAreSetApart(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 0.5: "0.5", 999: "999", 1000: "1,000", 1234567: "1,234,567", -20000: "-20,000", 2500.5: "2,500.5"} {
		if got := thousands(v); got != want {
			t.Errorf("%v became %q, want %q", v, got, want)
		}
	}
}
