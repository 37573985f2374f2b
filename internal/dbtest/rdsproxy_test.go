package dbtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/pinning"
)

func TestStatementThatPinsIsFoundInItsTestsDatabase(t *testing.T) {
	t.Parallel()
	db, other := New(t), New(t)
	p, ok := db.Services.Pooler.(*proxy)
	if !ok {
		t.Skip("this run is not behind the stand-in for RDS Proxy")
	}
	pool := newPool(t, db.URL, nil) // whose statements are not inspected
	defer pool.Close()
	for _, statement := range []string{"SELECT 1", "LISTEN a", "SELECT 'LISTEN b'"} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Pool.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if err := p.findings.left(); err == nil || !strings.Contains(err.Error(), "LISTEN pins: LISTEN a") {
		t.Errorf("left is %v", err)
	}
	found := p.findings.take(db.Name) // else it would fail this test
	if len(found) != 1 || !found[0].Pinned || found[0].Construct != "LISTEN" || found[0].Statement != "LISTEN a" {
		t.Errorf("found %+v", found)
	}
	if more := slices.Concat(p.findings.take(db.Name), p.findings.take(other.Name)); len(more) > 0 {
		t.Errorf("found also %+v", more)
	}
}

func TestStatementThatTheContractForbidsIsNoticed(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("the race detector makes the parser slow")
	}
	db := New(t)
	pool := newPool(t, db.DirectURL, &db.sent)
	defer pool.Close()
	for _, statement := range []string{"SELECT 1", "NOTIFY a"} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	breaches := db.sent.Breaches()
	if len(breaches) != 1 || breaches[0].Text != "NOTIFY a" {
		t.Errorf("breaches are %v", breaches)
	}
	db.sent = pinning.Tracer{} // else they would fail this test
}
