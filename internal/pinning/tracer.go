package pinning

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A Tracer notes the texts of all that pgx sends, to be inspected later: by tests, when
// they end. It sees queries, batches and named statements; not what bypasses pgx.Conn,
// and not what BEGIN, COMMIT and COPY look like on the wire. The zero value is ready, for
// any number of connections.
type Tracer struct {
	// NamedStatements tells that named statements are wanted, as with pgx's cache of
	// them. Default: each is a breach.
	NamedStatements bool

	mu    sync.Mutex
	texts []string // in order
	named []string
	seen  map[string]bool
}

var (
	_ pgx.QueryTracer   = (*Tracer)(nil)
	_ pgx.BatchTracer   = (*Tracer)(nil)
	_ pgx.PrepareTracer = (*Tracer)(nil)
)

// A Breach is a text that was sent though the pooler contract forbids it.
type Breach struct {
	Text     string
	Findings []Finding
	// Err tells why the text cannot be inspected.
	Err error
}

// String is one line, with the beginning of the text.
func (b Breach) String() string {
	var what []string
	for _, f := range b.Findings {
		what = append(what, f.String())
	}
	if b.Err != nil {
		what = append(what, b.Err.Error())
	}
	return fmt.Sprintf("%s: %.200q", strings.Join(what, ", "), b.Text)
}

// Breaches inspects each distinct text that was sent so far, in order.
func (t *Tracer) Breaches() (breaches []Breach) {
	t.mu.Lock()
	texts, named := slices.Clone(t.texts), slices.Clone(t.named)
	t.mu.Unlock()
	for _, text := range texts {
		if found, err := Inspect(text); len(found) > 0 || err != nil {
			breaches = append(breaches, Breach{text, found, err})
		}
	}
	for _, text := range named {
		breaches = append(breaches, Breach{Text: text, Findings: []Finding{{"named statement", false}}})
	}
	return breaches
}

// Texts returns each distinct text that was sent so far, in order.
func (t *Tracer) Texts() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.texts)
}

func (t *Tracer) note(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen == nil {
		t.seen = map[string]bool{}
	}
	if !t.seen[text] {
		t.seen[text] = true
		t.texts = append(t.texts, text)
	}
}

// TraceQueryStart notes the text of Query, QueryRow or Exec.
func (t *Tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	t.note(data.SQL)
	return ctx
}

// TraceQueryEnd does nothing.
func (*Tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart notes the texts of a batch.
func (t *Tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if data.Batch != nil {
		for _, q := range data.Batch.QueuedQueries {
			t.note(q.SQL)
		}
	}
	return ctx
}

// TraceBatchQuery does nothing.
func (*Tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd does nothing.
func (*Tracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// TracePrepareStart notes the text of a Parse message, and whether it has a name.
func (t *Tracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	t.note(data.SQL)
	if data.Name != "" && !t.NamedStatements {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.named = append(t.named, data.SQL)
	}
	return ctx
}

// TracePrepareEnd does nothing.
func (*Tracer) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}
