package tasking_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pithworks/pith/tasking"
)

// versionsOf makes versions of labels and texts of these sizes, which don't compress.
func versionsOf(labels, label, text int) map[string]string {
	versions := map[string]string{}
	for i := range labels {
		name := fmt.Sprintf("%d-", i)
		for len(name) < label {
			name += string(rune('a' + rand.N(26)))
		}
		v := "1"
		for len(v)+2 <= text {
			v += "." + string(rune('1'+rand.N(9)))
		}
		v += strings.Repeat("0", text-len(v))
		versions[name] = v
	}
	return versions
}

func TestVersionsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	longest := tasking.NewType[any, any]("test."+strings.Repeat("n", 250), nil, tasking.TypeConfig{})
	h.c = h.client(h.Pool, tasking.Config{}, longest)
	for _, tt := range []struct {
		name     string
		versions map[string]string
		says     string // empty: it is possible
	}{
		{"as many as possible", versionsOf(50, 20, 10), ""},
		{"as long as possible", versionsOf(7, 100, 100), ""},
		{"one too many", versionsOf(51, 5, 3), "51 labels, at most 50 are possible: name only the components"},
		{"far too many", versionsOf(800, 5, 3), "800 labels, at most 50"},
		{"long label", versionsOf(1, 101, 3), "has 101 bytes, at most 100 are possible: shorten it"},
		{"long version", versionsOf(1, 5, 101), "has 101 bytes, at most 100 are possible: shorten it"},
		{"long together", versionsOf(50, 21, 10), "1550 bytes together, at most 1500 are possible: name only the components"},
		{"zero byte", map[string]string{"a\x00": "1"}, "zero byte"},
		{"no label", map[string]string{"": "1"}, "a label is empty"},
		{"no version", map[string]string{"core": "new"}, `core: "new" is not a PEP 440 version`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.c.Dispatch(t.Context(), longest.Request(nil, tasking.Options{Versions: tt.versions}))
			_, regErr := tasking.NewRegistry(tasking.NewType[any, any]("test.type", nil, tasking.TypeConfig{Versions: tt.versions}))
			if tt.says == "" {
				if err != nil || regErr != nil {
					t.Errorf("dispatch: %v; registry: %v", err, regErr)
				}
				return
			}
			if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("dispatch: %v, should be invalid and say %q", err, tt.says)
			}
			if regErr == nil || !strings.Contains(regErr.Error(), tt.says) {
				t.Errorf("registry: %v, should say %q", regErr, tt.says)
			}
		})
	}
}
