package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Request is a request whose path, credentials and body are good.
type Request struct {
	*http.Request
	// Query are the parameters of the query.
	Query url.Values
	// User who asks; nil: nobody in particular.
	User *User
	// ID is the key of the object that the path names; those of its parents are in PathValue.
	ID string

	server   *Server
	resource *Resource
	// collection is what the operation lists; nil: it lists none.
	collection *Collection
}

// last is a parameter of the query: of several of that name the last, as in Pulp.
func (r *Request) last(name string) string {
	list := r.Query[name]
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}

// UUID is ID as one.
func (r *Request) UUID() uuid.UUID { return uuid.MustParse(r.ID) } // the route has parsed it

// Href is the path of an object; keys are its own and, before it, those of its parents.
func (r *Request) Href(res *Resource, keys ...string) string {
	return res.base(r.server.root) + fill(res.object(), keys)
}

// fill puts keys in place of the segments of a pattern that vary.
func fill(pattern string, keys []string) string {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(pattern, "{")
		out.WriteString(before)
		if !ok {
			return out.String()
		}
		_, pattern, _ = strings.Cut(rest, "}")
		out.WriteString(keys[0])
		keys = keys[1:]
	}
}

// PRN is the name of an object: prn:core.task:KEY.
func (r *Resource) PRN(key string) string { return "prn:" + r.Model + ":" + key }

// Object is what an href or a PRN names.
type Object struct {
	Resource *Resource
	// Keys are those in its path: of its parents, and its own. None: the whole collection.
	Keys []string
	// Key is the one in its PRN. "": it has no PRN.
	Key string

	gone bool
}

// PRN names the object.
func (o Object) PRN() string { return o.Resource.PRN(o.Key) }

// named reports whether it is one object, which has a PRN.
func (o Object) named() bool { return o.Resource != nil && o.Key != "" }

// Resolve reads hrefs, relative or with scheme and host, and PRNs, in their order; what names nothing is an Object without
// Resource. Objects whose paths have keys of parents are looked up, and name nothing if they are not there; whether others
// exist is not asked.
func (r *Request) Resolve(ctx context.Context, texts ...string) ([]Object, error) {
	return r.server.Resolve(ctx, texts...)
}

// Resolve reads hrefs and PRNs: see Request.Resolve.
func (s *Server) Resolve(ctx context.Context, texts ...string) ([]Object, error) {
	objects, err := s.resolve(ctx, texts, false)
	for i, o := range objects {
		if o.gone {
			objects[i] = Object{}
		}
	}
	return objects, err
}

// resolve reads hrefs and PRNs, and asks each resource once for its objects. If all are to be there, it asks also for those
// of which texts tell all else.
func (s *Server) resolve(ctx context.Context, texts []string, there bool) ([]Object, error) {
	objects, of := make([]Object, len(texts)), map[*Resource][]*Object{}
	for i, text := range texts {
		o, ok := s.parse(text)
		if !ok {
			continue
		}
		if objects[i] = o; o.Resource.Model != "" && (o.Keys != nil || o.Key != "") {
			of[o.Resource] = append(of[o.Resource], &objects[i])
		}
	}
	for res, list := range of {
		lookUp := res.locate
		if res.Parent == nil {
			lookUp = res.exist
		}
		if res.Parent == nil && !there {
			continue
		}
		if err := lookUp(ctx, list); err != nil {
			return nil, fmt.Errorf("look up objects of %s: %w", res.Path, err)
		}
	}
	return objects, nil
}

// hrefs are those of the objects that PRNs name, by PRN: of those that are there, or may be there.
func (r *Request) hrefs(ctx context.Context, prns []string, there bool) (map[string]string, error) {
	objects, err := r.server.resolve(ctx, prns, there)
	hrefs := map[string]string{}
	for i, o := range objects {
		if o.named() && !o.gone {
			hrefs[prns[i]] = r.Href(o.Resource, o.Keys...)
		}
	}
	return hrefs, err
}

// exist marks the objects that are gone.
func (r *Resource) exist(ctx context.Context, objects []*Object) error {
	keys := make([]string, len(objects))
	for i, o := range objects {
		keys[i] = o.Key
	}
	slices.Sort(keys)
	existing, err := r.Existing(ctx, slices.Compact(keys))
	there := map[string]bool{}
	for _, key := range existing {
		there[key] = true
	}
	for _, o := range objects {
		o.gone = !there[o.Key]
	}
	return err
}

// locate completes objects of which either the keys in the path or the key in the PRN is known.
func (r *Resource) locate(ctx context.Context, objects []*Object) error {
	var keys []string
	var paths [][]string
	for _, o := range objects {
		if o.Keys == nil {
			keys = append(keys, o.Key)
		} else {
			paths = append(paths, o.Keys)
		}
	}
	located, identified := map[string][]string{}, []string{}
	var err error
	if keys != nil {
		located, err = r.Locate(ctx, keys)
	}
	if paths != nil && err == nil {
		identified, err = r.Identify(ctx, paths)
	}
	switch {
	case err != nil:
		return err
	case len(identified) != len(paths):
		return fmt.Errorf("%d keys for %d paths", len(identified), len(paths))
	}
	for _, o := range objects {
		if o.Keys == nil {
			o.Keys = located[o.Key]
		} else {
			o.Key, identified = identified[0], identified[1:]
		}
		o.gone = o.Keys == nil || o.Key == ""
	}
	return nil
}

// parse reads an href or a PRN as far as the text goes: of an object whose path has keys of parents it tells either those
// or the key in the PRN.
func (s *Server) parse(text string) (Object, bool) {
	if model, key, ok := parsePRN(text); ok {
		for _, res := range s.resources() {
			switch {
			case res.Model != model:
			case res.Parent != nil:
				key, ok := (&Resource{}).key(key) // a UUID
				return Object{Resource: res, Key: key}, ok
			default:
				key, ok := res.key(key)
				return Object{Resource: res, Keys: []string{key}, Key: key}, ok
			}
		}
		return Object{}, false
	}
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		text = u.Path
	}
	for _, res := range s.resources() {
		rest, ok := strings.CutPrefix(text, res.base(s.root))
		if !ok {
			continue
		}
		if keys, ok := match(res.object(), rest, res); ok {
			o := Object{Resource: res, Keys: keys}
			if res.Model != "" && res.Parent == nil {
				o.Key = keys[0]
			}
			return o, true
		}
		if keys, ok := match(res.path(), rest, res.Parent); ok && len(keys) == 0 {
			return Object{Resource: res}, true
		}
	}
	return Object{}, false
}

// parsePRN splits a PRN into model and key.
func parsePRN(text string) (model, key string, ok bool) {
	rest, ok := strings.CutPrefix(text, "prn:")
	if !ok {
		return "", "", false
	}
	model, key, ok = strings.Cut(rest, ":")
	return model, key, ok && model != "" && key != ""
}

// match reads the keys out of a path that follows a pattern, whose last key is one of res.
func match(pattern, path string, res *Resource) (keys []string, ok bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	var chain []*Resource
	for at := res; at != nil; at = at.Parent {
		chain = append([]*Resource{at}, chain...)
	}
	for i, segment := range want {
		if !strings.HasPrefix(segment, "{") {
			if segment != got[i] {
				return nil, false
			}
			continue
		}
		key, ok := chain[len(keys)].key(got[i])
		if !ok {
			return nil, false
		}
		keys = append(keys, key)
	}
	return keys, true
}

// base is the scheme and host under which the client knows the server.
func (r *Request) base() string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if r.server.cfg.TrustProxy {
		if forwarded := r.Header.Get("X-Forwarded-Proto"); forwarded == "http" || forwarded == "https" {
			scheme = forwarded
		}
	}
	return scheme + "://" + r.Host
}

type contextKey struct{}

// trace is what a request is followed by: its context has it.
type trace struct {
	correlationID string
	// user is who asks, once that is verified.
	user string
}

// traceOf is that of the request in whose context this is.
func traceOf(ctx context.Context) *trace {
	if t, ok := ctx.Value(contextKey{}).(*trace); ok {
		return t
	}
	return &trace{}
}

// correlationID is that of the request in whose context this is.
func correlationID(ctx context.Context) string { return traceOf(ctx).correlationID }

// recorder remembers what was sent.
type recorder struct {
	http.ResponseWriter
	status, bytes int
}

// WriteHeader sends the status.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += n
	return n, err
}

// observed logs and measures each request once it is answered. A user is one who is verified: whoever else asks may claim any
// name.
func (s *Server) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec, began := &recorder{ResponseWriter: w, status: http.StatusOK}, time.Now()
		next.ServeHTTP(rec, r)
		t, took := traceOf(r.Context()), time.Since(began)
		s.cfg.Log.Info("request answered", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
			"took", took, "user", t.user, "client", r.RemoteAddr, "correlation_id", t.correlationID)
		s.durations.record(r, rec.status, took)
	})
}

// sameOrigin refuses what pages of other origins have a browser send, which adds the credentials that it remembers. Other
// clients send neither of the headers that tell a browser.
func sameOrigin(next http.Handler) http.Handler {
	p := http.NewCrossOriginProtection()
	p.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"detail":"Pages of other origins may only read."}`))
	}))
	return p.Handler(next)
}

// correlationHeader is spelled as Pulp spells it, not as Go would.
const correlationHeader = "Correlation-ID"

// withCorrelationID gives each request one, tells the client, and adds the headers that all replies have.
func withCorrelationID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := cmp.Or(r.Header.Get("Correlation-Id"), r.Header.Get("Correlation_id"))
		if _, err := uuid.Parse(id); err != nil || len(id) != 32 && len(id) != 36 {
			id = strings.ReplaceAll(uuid.NewString(), "-", "")
		}
		h := w.Header()
		h[correlationHeader] = []string{id}
		h.Set("Access-Control-Expose-Headers", correlationHeader)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, &trace{correlationID: id})))
	})
}
