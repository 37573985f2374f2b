package api_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pithworks/pith/api"
)

// known are the members that Pulp's command line knows of each kind of object in a document. It refuses the document for any
// other one, but for those whose names begin with x- where that is allowed. Source: pulp-glue 0.41, pulp_glue.common.oas.
var known = map[string]string{
	"document":       "openapi info jsonSchemaDialect servers paths webhooks components security tags externalDocs",
	"info":           "title summary description termsOfService contact license version",
	"license":        "name identifier url",
	"pathItem":       "get put post patch delete options head trace servers parameters",
	"operation":      "tags summary description externalDocs operationId parameters requestBody responses callbacks deprecated security servers",
	"parameter":      "name in description required deprecated allowEmptyValue schema style explode allowedReserved example examples",
	"requestBody":    "description content required",
	"mediaType":      "schema example examples encoding",
	"response":       "description headers content links",
	"components":     "schemas responses parameters examples requestBodies headers securitySchemes links callbacks pathItems",
	"securityScheme": "type description scheme bearerFormat",
	"reference":      "$ref summary description",
}

// closed are the kinds that may have no members that begin with x-.
var closed = []string{"securityScheme", "reference"}

// strict looks at a document as Pulp's command line does.
type strict struct {
	t    *testing.T
	seen map[string]int
}

// object checks the members of an object of this kind.
func (s strict) object(kind, at string, v any) object {
	s.t.Helper()
	o, ok := v.(object)
	if !ok {
		s.t.Fatalf("%s is no object: %v", at, v)
	}
	if o["$ref"] != nil {
		kind = "reference"
	}
	s.seen[kind]++
	for name := range o {
		extension := strings.HasPrefix(name, "x-") && !slices.Contains(closed, kind)
		if !extension && !slices.Contains(strings.Fields(known[kind]), name) {
			s.t.Errorf("%s, a %s, has a member %s", at, kind, name)
		}
	}
	return o
}

// text checks that members of an object are texts that are not empty.
func (s strict) text(at string, o object, names ...string) {
	s.t.Helper()
	for _, name := range names {
		if text, _ := o[name].(string); text == "" {
			s.t.Errorf("%s has %v as its %s", at, o[name], name)
		}
	}
}

func (s strict) content(at string, o object) {
	s.t.Helper()
	for kind, v := range o {
		if m := s.object("mediaType", at+" as "+kind, v); m["schema"] == nil {
			s.t.Errorf("%s as %s has no schema", at, kind)
		}
	}
}

func (s strict) operation(at string, v any) {
	s.t.Helper()
	o := s.object("operation", at, v)
	s.text(at, o, "operationId", "summary", "description")
	for _, v := range o["parameters"].([]any) {
		p := s.object("parameter", at, v)
		s.text(at, p, "name", "in")
		if name := p["name"]; p["in"] == "path" && p["required"] != true {
			s.t.Errorf("%s: the path's %v is not required", at, name)
		} else if p["schema"] == nil {
			s.t.Errorf("%s: %v has no schema", at, name)
		}
	}
	if o["requestBody"] != nil {
		body := s.object("requestBody", at, o["requestBody"])
		s.content(at+"'s body", body["content"].(object))
	}
	status := regexp.MustCompile(`^[1-5]\d\d$`)
	for code, v := range o["responses"].(object) {
		r := s.object("response", at, v)
		s.text(at+" "+code, r, "description")
		if !status.MatchString(code) {
			s.t.Errorf("%s answers %s", at, code)
		}
		if content, ok := r["content"].(object); ok {
			s.content(at+" "+code, content)
		}
	}
}

func TestDocumentHasNoMembersThatStrictClientsDoNotKnow(t *testing.T) {
	t.Parallel()
	server := api.Aloof(t, api.Config{})
	for _, form := range forms {
		s := strict{t, map[string]int{}}
		doc := s.object("document", "the document", document(t, server, form))
		s.text("the document", doc, "openapi")
		info := s.object("info", "info", doc["info"])
		s.text("info", info, "title", "version")
		s.text("the license", s.object("license", "the license", info["license"]), "name")
		components := s.object("components", "components", doc["components"])
		for name, v := range components["securitySchemes"].(object) {
			s.text(name, s.object("securityScheme", name, v), "type", "scheme")
		}
		for path, v := range doc["paths"].(object) {
			for method, o := range s.object("pathItem", path, v) {
				s.operation(method+" "+path, o)
			}
		}
		for _, kind := range []string{"parameter", "requestBody", "mediaType", "response", "securityScheme"} {
			if s.seen[kind] == 0 {
				t.Errorf("%s: no %s was looked at", form, kind)
			}
		}
	}
}

// TestRepliesAreDescribedAsExactlyJSON: the command line compares the content type of a reply with the document's, text by
// text.
func TestRepliesAreDescribedAsExactlyJSON(t *testing.T) {
	t.Parallel()
	plain := []string{"docs_api.json_get", "docs_api.yaml_get", "docs_get", "pith_profiles_read"}
	for at, o := range operations(document(t, api.Aloof(t, api.Config{}), "")) {
		for code, r := range o["responses"].(object) {
			content, _ := r.(object)["content"].(object)
			for kind := range content {
				if kind != "application/json" && (code != "200" || !slices.Contains(plain, o["operationId"].(string))) {
					t.Errorf("%s %s is %s", at, code, kind)
				}
			}
		}
	}
}

func TestEveryOperationTakesTheWishForProfiles(t *testing.T) {
	t.Parallel()
	for at, o := range operations(document(t, api.Aloof(t, api.Config{}), "")) {
		found := 0
		for _, v := range o["parameters"].([]any) {
			if p := v.(object); p["name"] == "X-Task-Diagnostics" && p["in"] == "header" && p["required"] != true {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s takes it %d times", at, found)
		}
	}
}
