package api

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
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

// document keeps the forms of the OpenAPI document that were asked for, as JSON.
type document struct {
	mu    sync.Mutex
	forms map[string][]byte
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
			Replies: map[int]any{http.StatusOK: media(kind)},
			Do: Bare(func(_ context.Context, r *Request) (Reply, error) {
				data, err := s.asked(r)
				if err == nil {
					data, err = encode(data)
				}
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

// asked is the document in the form that a client asks for, as JSON.
func (s *Server) asked(r *Request) ([]byte, error) {
	on := func(name string) bool {
		if !r.Query.Has(name) {
			return false
		}
		v, err := strconv.ParseBool(r.Query.Get(name))
		return err != nil || v
	}
	f := form{bindings: on("bindings"), keys: on("pk_path")}
	for label := range strings.SplitSeq(r.Query.Get("component"), ",") {
		if label = strings.TrimSpace(label); label == "" {
			continue
		}
		if !slices.ContainsFunc(s.cfg.Components, func(c Component) bool { return c.Label == label }) {
			return nil, detail(http.StatusBadRequest, fmt.Sprintf("Invalid component %q: this server has none of that name.", label))
		}
		f.components = append(f.components, label)
	}
	slices.Sort(f.components)
	f.components = slices.Compact(f.components)
	key := fmt.Sprint(f)
	s.document.mu.Lock()
	defer s.document.mu.Unlock()
	if data, ok := s.document.forms[key]; ok {
		return data, nil
	}
	doc, err := s.describe(f)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	if s.document.forms == nil {
		s.document.forms = map[string][]byte{}
	}
	s.document.forms[key] = data // as many as there are subsets of the components, times four
	return data, nil
}

// docsPage is the page, which reads the document and shows it.
func (s *Server) docsPage(context.Context, *Request) (Reply, error) {
	at := s.cfg.Root + assetsPath
	page := strings.NewReplacer("{{assets}}", at, "{{document}}", s.root+"docs/api.json?pk_path=1").Replace(pageTemplate)
	return Reply{Status: http.StatusOK, raw: []byte(page), Header: http.Header{
		"Content-Type":            {"text/html; charset=utf-8"},
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
