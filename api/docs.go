package api

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/oasdiff/yaml"
)

// media is a reply that is no JSON value of ours, by its content type.
type media string

// assets are the files of the documentation page: Swagger UI's.
//
//go:embed assets
var assets embed.FS

// assetsPath is where they are served.
const assetsPath = "assets/"

// CollectStatic writes the static files into a directory, for a web server to serve them below the API's root at assets/.
func CollectStatic(dir string) error {
	return fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(name, "assets/"))
		data, err := assets.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	})
}

// document keeps the usual forms of the OpenAPI document that were asked for: those of all components, and of each alone. Anyone
// may ask for any number of others, without credentials.
type document struct {
	// digest tells the documents of different APIs apart. It never changes.
	digest string
	// forms are encoded, by content type and form.
	forms sync.Map
	// kept and others are the turns to make a form that is kept, and any other: one at a time, since it takes a processor for a
	// while, and clients who ask for others do not hold up those of the kept ones.
	kept, others chan struct{}
}

// digest is that of the document.
func (s *Server) digest() (string, error) {
	doc, err := s.describe(form{})
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(doc)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:4]), err
}

// version is what clients are told as a component's. They keep the document until it changes for one of them, so that of the
// core has a part that changes with the document: a local one, which no requirement looks at.
func (s *Server) version(c Component) string {
	if c.Label != coreLabel || s.document.digest == "" {
		return c.Version
	}
	separator := "+"
	if strings.Contains(c.Version, "+") {
		separator = "."
	}
	return c.Version + separator + "pith." + s.document.digest
}

// docsResource serves the document and the page that shows it.
func (s *Server) docsResource() *Resource {
	parameters := []Parameter{
		{Name: "component", Type: "string", List: true, Description: "Describe these components only."},
		{Name: "bindings", Type: "boolean", Description: "Give operations ids that are unique per tag only."},
		{Name: "pk_path", Type: "boolean", Description: "Give paths with keys instead of whole hrefs."},
		{Name: "include_html", Type: "boolean", Description: "Accepted, and ignored."},
		{Name: "lang", Type: "string", Description: "Accepted, and ignored."},
	}
	serve := func(p, verb, kind string, encode func([]byte) ([]byte, error)) Operation {
		return Operation{
			Method: http.MethodGet, Path: p, Verb: verb, Summary: "The OpenAPI document.", Public: true, Parameters: parameters,
			Replies: map[int]any{http.StatusOK: media(kind), http.StatusBadRequest: Detail{}},
			Do: Bare(func(ctx context.Context, r *Request) (Reply, error) {
				data, err := s.asked(ctx, r, kind, encode)
				return Reply{Status: http.StatusOK, raw: data, Header: http.Header{
					"Content-Type": {kind}, "Cache-Control": {"max-age=8640000"}, "Vary": {"Accept, Authorization"},
				}}, err
			}),
		}
	}
	return &Resource{
		Path: "docs/", Name: "docs", Key: "docs", Tag: "Docs",
		Operations: []Operation{
			serve("api.json", "api.json_get", "application/vnd.oai.openapi+json", func(data []byte) ([]byte, error) { return data, nil }),
			serve("api.yaml", "api.yaml_get", "application/vnd.oai.openapi", yaml.JSONToYAML),
			{
				Method: http.MethodGet, Verb: "get", Summary: "A page that shows the API.", Public: true,
				Replies: map[int]any{http.StatusOK: media("text/html; charset=utf-8")},
				Do:      Bare(s.docsPage),
			},
		},
	}
}

// form is that of the document which a client asks for.
func (s *Server) form(r *Request) (form, error) {
	on := func(name string) bool {
		if !r.Query.Has(name) {
			return false
		}
		v, err := strconv.ParseBool(r.last(name))
		return err != nil || v
	}
	f := form{bindings: on("bindings"), keys: on("pk_path")}
	for label := range strings.SplitSeq(strings.Join(r.Query["component"], ","), ",") {
		if label = strings.TrimSpace(label); label == "" {
			continue
		}
		if !slices.ContainsFunc(s.cfg.Components, func(c Component) bool { return c.Label == label }) {
			return f, detail(http.StatusBadRequest, fmt.Sprintf("Invalid component %q: this server has none of that name.", label))
		}
		f.components = append(f.components, label)
	}
	slices.Sort(f.components)
	if f.components = slices.Compact(f.components); len(f.components) == len(s.cfg.Components) {
		f.components = nil
	}
	return f, nil
}

// asked is the document in the form that a client asks for, encoded from JSON as a content type.
func (s *Server) asked(ctx context.Context, r *Request, kind string, encode func([]byte) ([]byte, error)) ([]byte, error) {
	f, err := s.form(r)
	if err != nil {
		return nil, err
	}
	key := fmt.Sprint(kind, f)
	if data, ok := s.document.forms.Load(key); ok {
		return data.([]byte), nil
	}
	turn := s.document.kept
	if len(f.components) > 1 {
		turn = s.document.others
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done(): // the client has hung up
		return nil, ctx.Err()
	}
	if data, ok := s.document.forms.Load(key); ok { // made meanwhile
		return data.([]byte), nil
	}
	doc, err := s.describe(f)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(doc)
	if err == nil {
		data, err = encode(data)
	}
	if err != nil {
		return nil, err
	}
	if len(f.components) <= 1 {
		s.document.forms.Store(key, data)
	}
	return data, nil
}

// docsPage is the page, which reads the document and shows it. Browsers keep the document by its address, so that has the
// version; the page they have to ask for.
func (s *Server) docsPage(context.Context, *Request) (Reply, error) {
	query := url.Values{"pk_path": {"1"}, "version": {s.version(s.cfg.Components[0])}}
	page := strings.NewReplacer(
		"{{assets}}", s.cfg.Root+assetsPath, "{{document}}", html.EscapeString(s.root+"docs/api.json?"+query.Encode()),
	).Replace(pageTemplate)
	return Reply{Status: http.StatusOK, raw: []byte(page), Header: http.Header{
		"Content-Type":            {"text/html; charset=utf-8"},
		"Cache-Control":           {"no-cache"},
		"Content-Security-Policy": {"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; font-src 'self'"},
	}}, nil
}

const pageTemplate = `<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Pith's REST API</title>
  <link rel="stylesheet" href="{{assets}}swagger-ui.css">
  <link rel="icon" href="data:,">
</head>
<body>
  <div id="swagger-ui" data-document="{{document}}"></div>
  <script src="{{assets}}swagger-ui-bundle.js"></script>
  <script src="{{assets}}page.js"></script>
</body>
</html>
`

// serveAssets serves the static files.
func (s *Server) serveAssets() http.Handler {
	kinds := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, s.cfg.Root+assetsPath)
		data, err := assets.ReadFile("assets/" + name)
		kind, ok := kinds[path.Ext(name)]
		if err != nil || !ok {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(data)
		}
	})
}
