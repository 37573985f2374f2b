package api

import (
	"context"
	"maps"
	"slices"
	"testing"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// Roles are those of the core.
var Roles = coreRoles

// Sign signs a link to a path until a time, in seconds since 1970.
func (s *Server) Sign(ctx context.Context, path, expires string) (string, error) {
	return s.signature(ctx, path, expires)
}

// Aloof is a server whose database is nowhere: it can tell of itself, no more.
func Aloof(t testing.TB, cfg Config) *Server {
	t.Helper()
	p, err := pool.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", pool.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Version = builtin.Version
	s, err := New(p, func(app *appstatus.App) (*tasking.Client, error) {
		return tasking.New(p, tasking.Config{Registry: registry, App: app})
	}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// KeptForms is how many forms of the document a server keeps.
func (s *Server) KeptForms() (n int) {
	s.document.forms.Range(func(any, any) bool {
		n++
		return true
	})
	return n
}

// Declared is an operation that a server declares.
type Declared struct {
	// Component is the label of whose it is.
	Component string
	// ID is its name in the document, Verb the short one, which is unique per Tag.
	ID, Verb, Tag string
	Method        string
	// Path has the names of keys in braces, HrefPath those of whole hrefs.
	Path, HrefPath string
	Public         bool
	// Statuses are those that it declares.
	Statuses []int
	// Body says that it takes one, Filtered that it lists a collection with filters.
	Body, Filtered bool
}

// Declared are all operations of a server's components.
func (s *Server) Declared() (all []Declared) {
	for _, c := range s.cfg.Components {
		for _, res := range c.Resources {
			for _, o := range res.Operations {
				all = append(all, Declared{
					Component: c.Label, ID: res.Name + "_" + o.Verb, Verb: o.Verb, Tag: res.Tag, Method: o.Method,
					Path: res.base(s.root) + res.pattern(o), HrefPath: res.hrefPattern(s.root, o), Public: o.Public,
					Statuses: slices.Sorted(maps.Keys(o.Replies)), Body: o.Do.body != nil, Filtered: o.Collection != nil,
				})
			}
		}
	}
	return all
}
