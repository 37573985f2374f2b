package tasking_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/pinning"
	"github.com/pithworks/pith/tasking"
)

// Package pinning holds each text to the pooler contract as it is written.
func TestStatementTextsAreShortAndGrowWithNothing(t *testing.T) {
	t.Parallel()
	t.Run("as sent", func(t *testing.T) {
		h := newHarness(t)
		pool, faults := h.faulty(h.Pool)
		c := h.client(pool, tasking.Config{})
		huge := strings.Repeat("x", 1<<20)
		d, err := c.Dispatch(t.Context(), plain.Request(huge, tasking.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		requests := make([]tasking.Request, 3000)
		for i := range requests {
			requests[i] = plain.Request(huge[:100], tasking.Options{Shared: []string{huge[:500], strconv.Itoa(i)}})
		}
		if _, err := c.DispatchMany(t.Context(), requests); err != nil {
			t.Fatal(err)
		}
		if got := faults.longestText(); got == 0 || got >= pinning.MaxText {
			t.Errorf("the longest text has %d bytes", got)
		}
		got := h.claim(h.worker(), 1)
		if len(got) != 1 || got[0].ID != d.ID || string(got[0].Args) != `"`+huge+`"` {
			t.Errorf("the arguments of %d bytes came back as %d claims", len(huge), len(got))
		}
	})
}
