package api

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/url"
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
	// Keys are those of its parents and its own; none: the whole collection.
	Keys []string
}

// exists tells whether the object is there, if its resource can tell.
func (o Object) exists(ctx context.Context) (bool, error) {
	if o.Resource.Exists == nil {
		return true, nil
	}
	return o.Resource.Exists(ctx, o.Keys[len(o.Keys)-1])
}

// Resolve reads an href, relative or with scheme and host, or a PRN. Whether the object exists is not asked.
func (r *Request) Resolve(text string) (Object, bool) { return r.server.Resolve(text) }

// Resolve reads an href or a PRN: see Request.Resolve.
func (s *Server) Resolve(text string) (Object, bool) {
	if model, key, ok := parsePRN(text); ok {
		for _, res := range s.resources() {
			if res.Model == model {
				key, ok := res.key(key)
				return Object{res, []string{key}}, ok && res.Parent == nil
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
			return Object{res, keys}, true
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

// correlationID is that of the request in whose context this is.
func correlationID(ctx context.Context) string {
	id, _ := ctx.Value(contextKey{}).(string)
	return id
}

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

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// logged logs each request once it is answered.
func logged(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec, began := &recorder{ResponseWriter: w, status: http.StatusOK}, time.Now()
		next.ServeHTTP(rec, r)
		user, _, _ := basicAuth(r)
		log.Info("request answered", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
			"took", time.Since(began), "user", user, "client", r.RemoteAddr, "correlation_id", r.Context().Value(contextKey{}))
	})
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
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, id)))
	})
}
