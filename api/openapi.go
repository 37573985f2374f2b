package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/pithworks/pith/tasking"
)

// form is a form of the document that a client asks for.
type form struct {
	// components are the labels of those that are described; none: all.
	components []string
	// bindings is what generators of clients take: ids that are unique per tag only, and one type for each reply.
	bindings bool
	// keys has the paths with the keys of objects, instead of whole hrefs.
	keys bool
}

// describe makes the OpenAPI document from the components.
func (s *Server) describe(f form) (*openapi3.T, error) {
	versions := map[string]string{}
	for _, c := range s.cfg.Components {
		versions[c.Label] = s.version(c)
	}
	d := &describer{
		server: s, form: f, schemas: openapi3.Schemas{},
		doc: &openapi3.T{
			OpenAPI: "3.0.3",
			Info: &openapi3.Info{
				Title: "Pith's REST API, compatible with Pulp 3", Version: apiVersion,
				License:    &openapi3.License{Name: "Apache 2.0", URL: "https://www.apache.org/licenses/LICENSE-2.0.html"},
				Extensions: map[string]any{"x-pulp-app-versions": versions, "x-pulp-domain-enabled": false},
			},
			Paths: openapi3.NewPaths(),
		},
	}
	for _, c := range s.cfg.Components {
		if len(f.components) > 0 && !slices.Contains(f.components, c.Label) {
			continue
		}
		for _, res := range c.Resources {
			for _, o := range res.Operations {
				if err := d.add(res, o); err != nil {
					return nil, fmt.Errorf("component %q: describe %s of %s: %w", c.Label, o.Verb, res.path(), err)
				}
			}
		}
	}
	d.doc.Components = &openapi3.Components{
		Schemas: d.schemas,
		SecuritySchemes: openapi3.SecuritySchemes{
			"basicAuth": {Value: &openapi3.SecurityScheme{Type: "http", Scheme: "basic"}},
		},
	}
	return d.doc, nil
}

// usual reports whether the operation is called what its method and path say. Those of Pulp's bindings that are not have
// long names, such as tasks_cancel. What is posted to a collection, and what is done below a path, has names of its own.
func (o Operation) usual() bool {
	switch {
	case o.Path == wildcard:
		return o.Verb == map[string]string{
			http.MethodGet: "read", http.MethodPut: "update", http.MethodPatch: "partial_update", http.MethodDelete: "delete",
		}[o.Method]
	case o.Path == "" && o.Method != http.MethodPost:
		return o.lists() && o.Verb == "list"
	}
	return true
}

// id is the operation's name in the document.
func (o Operation) id(res *Resource, bindings bool) string {
	if bindings && o.usual() {
		return o.Verb
	}
	return res.Name + "_" + o.Verb
}

type describer struct {
	server  *Server
	form    form
	doc     *openapi3.T
	schemas openapi3.Schemas
	types   map[string]reflect.Type
}

func (d *describer) add(res *Resource, o Operation) error {
	path := res.hrefPattern(d.server.root, o)
	if d.form.keys {
		path = res.base(d.server.root) + res.pattern(o)
	}
	op := openapi3.NewOperation()
	op.OperationID = o.id(res, d.form.bindings)
	op.Summary, op.Description, op.Tags = o.Summary, o.Summary, []string{res.Tag}
	if !o.Public {
		op.Security = &openapi3.SecurityRequirements{{"basicAuth": {}}}
	}
	d.parameters(op, res, o, path)
	for i, p := range op.Parameters {
		if op.Parameters[:i].GetByInAndName(p.Value.In, p.Value.Name) != nil {
			return fmt.Errorf("the parameter %s of the %s is there twice", p.Value.Name, p.Value.In)
		}
	}
	if o.Do.body != nil {
		body, err := d.schema(o.Do.body, true)
		if err != nil {
			return err
		}
		content := openapi3.Content{}
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded", "multipart/form-data"} {
			content[kind] = &openapi3.MediaType{Schema: body}
		}
		op.RequestBody = &openapi3.RequestBodyRef{Value: &openapi3.RequestBody{Required: true, Content: content}}
	}
	responses := openapi3.NewResponsesWithCapacity(8)
	for _, status := range slices.Sorted(maps.Keys(o.Replies)) {
		r, err := d.response(o, status)
		if err != nil {
			return err
		}
		responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: r})
	}
	for _, status := range d.errors(res, o) {
		if _, ok := o.Replies[status]; ok {
			continue
		}
		text := http.StatusText(status)
		responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: &openapi3.Response{Description: &text, Content: d.problem(status)}})
	}
	op.Responses = responses
	item := d.doc.Paths.Value(path)
	if item == nil {
		item = &openapi3.PathItem{}
		d.doc.Paths.Set(path, item)
	}
	if item.GetOperation(o.Method) != nil {
		return fmt.Errorf("%s %s is there twice: choose another Key or Path", o.Method, path)
	}
	item.SetOperation(o.Method, op)
	return nil
}

// errors are the statuses that the operation may answer without saying so itself.
func (d *describer) errors(res *Resource, o Operation) []int {
	list := []int{http.StatusNotAcceptable, http.StatusServiceUnavailable}
	if o.plain() {
		list = nil
	}
	if !o.Public {
		list = append(list, http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable)
	}
	if o.Do.body != nil {
		list = append(list, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	if o.Collection != nil {
		list = append(list, http.StatusBadRequest)
	}
	if strings.Contains(res.pattern(o), "{") {
		list = append(list, http.StatusNotFound)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// problem is the content of an error: a sentence, or, if the request is wrong, lists of sentences by field.
func (d *describer) problem(status int) openapi3.Content {
	name, s := "Detail", openapi3.NewObjectSchema().WithProperty("detail", openapi3.NewStringSchema()).WithRequired([]string{"detail"})
	if status == http.StatusBadRequest {
		name = "Problem"
		s = &openapi3.Schema{Description: "A sentence under detail, lists of sentences by field, or a list of sentences."}
	}
	d.schemas[name] = s.NewRef()
	return openapi3.Content{"application/json": &openapi3.MediaType{Schema: openapi3.NewSchemaRef("#/components/schemas/"+name, nil)}}
}

func (d *describer) response(o Operation, status int) (*openapi3.Response, error) {
	text := http.StatusText(status)
	r := &openapi3.Response{Description: &text}
	switch body := o.Replies[status].(type) {
	case nil:
	case media:
		r.Content = openapi3.Content{string(body): &openapi3.MediaType{Schema: openapi3.NewStringSchema().NewRef()}}
	default:
		schema, err := d.schema(reflect.TypeOf(body), false)
		if err != nil {
			return nil, err
		}
		if o.Also != nil && status == http.StatusOK && !d.form.bindings {
			also, err := d.schema(reflect.TypeOf(o.Also), false)
			if err != nil {
				return nil, err
			}
			schema = (&openapi3.Schema{AnyOf: openapi3.SchemaRefs{schema, also}}).NewRef()
		}
		r.Content = openapi3.Content{"application/json": &openapi3.MediaType{Schema: schema}}
	}
	return r, nil
}

func (d *describer) parameters(op *openapi3.Operation, res *Resource, o Operation, path string) {
	for name := range segments(path) {
		p := openapi3.NewPathParameter(name).WithSchema(openapi3.NewStringSchema())
		op.AddParameter(p)
	}
	op.AddParameter(openapi3.NewHeaderParameter("X-Task-Diagnostics").WithSchema(openapi3.NewArraySchema().WithItems(openapi3.NewStringSchema())).
		WithDescription("List of profilers to use on tasks."))
	add := func(p Parameter) {
		schema := &openapi3.Schema{Type: &openapi3.Types{p.Type}, Format: p.Format}
		for _, value := range p.Enum {
			schema.Enum = append(schema.Enum, value)
		}
		q := openapi3.NewQueryParameter(p.Name).WithDescription(p.Description)
		if p.List {
			explode := false
			q.Explode, q.Style = &explode, "form"
			schema = openapi3.NewArraySchema().WithItems(schema)
		}
		op.AddParameter(q.WithSchema(schema))
	}
	if o.Collection != nil {
		for _, p := range o.Collection.filters(nil).Parameters() {
			if o.Collection.Lax {
				break
			}
			add(Parameter{Name: p.Name, Description: p.Description, Type: p.Type, Format: p.Format, Enum: p.Enum, List: p.List})
		}
	}
	for _, p := range o.Parameters {
		add(p)
	}
	body, ok := o.Replies[http.StatusOK]
	if _, isPage := body.(paged); isPage {
		add(Parameter{Name: "limit", Type: "integer", Description: "Number of results to return per page."})
		add(Parameter{Name: "offset", Type: "integer", Description: "The initial index from which to return the results."})
	}
	if _, raw := body.(media); ok && body != nil && !raw && o.Method == http.MethodGet && !o.Public {
		only, without := "A list of fields to include in the response.", "A list of fields to exclude from the response."
		if res.Whole { // pulp lists nothing where it may not send these
			only = "Ignored: these objects come with all their fields."
			without = only
		}
		add(Parameter{Name: "fields", Type: "string", List: true, Description: only})
		add(Parameter{Name: "exclude_fields", Type: "string", List: true, Description: without})
	}
}

// segments are the names of a path's parameters.
func segments(path string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for {
			_, rest, ok := strings.Cut(path, "{")
			if !ok {
				return
			}
			name, after, _ := strings.Cut(rest, "}")
			if !yield(name) {
				return
			}
			path = after
		}
	}
}

// schema is a reference to a type's schema, or the schema itself of what has no name. Bodies and replies of one struct
// would differ in what they require, so no struct is both.
func (d *describer) schema(t reflect.Type, body bool) (*openapi3.SchemaRef, error) {
	if t.Kind() == reflect.Pointer {
		ref, err := d.schema(t.Elem(), body)
		if err != nil || body {
			return ref, err
		}
		if ref.Ref != "" { // beside a reference nothing else is read
			return (&openapi3.Schema{Nullable: true, AllOf: openapi3.SchemaRefs{ref}}).NewRef(), nil
		}
		v := *ref.Value
		v.Nullable = true
		return v.NewRef(), nil
	}
	if possible := choices(t); possible != nil {
		s := openapi3.NewStringSchema()
		for _, c := range possible {
			s.Enum = append(s.Enum, c)
		}
		return s.NewRef(), nil
	}
	switch {
	case t == timeType:
		return openapi3.NewDateTimeSchema().NewRef(), nil
	case t == reflect.TypeFor[json.RawMessage]():
		return (&openapi3.Schema{}).NewRef(), nil
	case t == reflect.TypeFor[tasking.Error]() && d.form.bindings: // to Pulp's clients it is any object
		s := openapi3.NewObjectSchema().WithAnyAdditionalProperties()
		return s.NewRef(), nil
	}
	switch t.Kind() {
	case reflect.String:
		return openapi3.NewStringSchema().NewRef(), nil
	case reflect.Bool:
		return openapi3.NewBoolSchema().NewRef(), nil
	case reflect.Int, reflect.Int32, reflect.Int64:
		return openapi3.NewIntegerSchema().NewRef(), nil
	case reflect.Float64:
		if !body && t != reflect.TypeFor[Float]() {
			return nil, fmt.Errorf("the type %s is not written as Pulp does: Float is", t)
		}
		return openapi3.NewFloat64Schema().WithFormat("double").NewRef(), nil
	case reflect.Slice:
		items, err := d.schema(t.Elem(), body)
		if err != nil {
			return nil, err
		}
		return (&openapi3.Schema{Type: &openapi3.Types{"array"}, Items: items}).NewRef(), nil
	case reflect.Map:
		items, err := d.schema(t.Elem(), body)
		if err != nil {
			return nil, err
		}
		if body && t.Elem().Kind() == reflect.Pointer {
			v := *items.Value // of a body, so it is no struct
			v.Nullable = true
			items = v.NewRef()
		}
		s := openapi3.NewObjectSchema()
		s.AdditionalProperties = openapi3.AdditionalProperties{Schema: items}
		return s.NewRef(), nil
	case reflect.Struct:
		return d.object(t, body)
	default:
		return nil, fmt.Errorf("the type %s has no schema", t)
	}
}

func (d *describer) object(t reflect.Type, body bool) (*openapi3.SchemaRef, error) {
	if t.Name() == "" {
		return nil, fmt.Errorf("%s has no name", t)
	}
	name := schemaName(t)
	ref := openapi3.NewSchemaRef("#/components/schemas/"+name, nil)
	if d.types == nil {
		d.types = map[string]reflect.Type{}
	}
	switch known, ok := d.types[name]; {
	case ok && known == t:
		return ref, nil
	case ok:
		return nil, fmt.Errorf("%s and %s have the same name in the document: %s", known, t, name)
	}
	d.types[name] = t
	s := openapi3.NewObjectSchema()
	d.schemas[name] = s.NewRef()
	for _, f := range fieldsOf(t) {
		p, err := d.schema(f.typ, body)
		if err != nil {
			return nil, err
		}
		if p.Ref == "" {
			v := *p.Value
			v.Description = f.doc
			v.Nullable = v.Nullable || f.null
			v.WriteOnly = f.secret
			v.ReadOnly = !body && (f.name == "pulp_href" || f.name == "prn")
			if f.most > 0 {
				n := uint64(f.most)
				v.MaxLength = &n
			}
			if body && v.Type != nil && v.Type.Is("string") && v.Enum == nil && v.Format == "" && !f.blank {
				v.MinLength = 1
			}
			if f.standard != "" {
				if err := json.Unmarshal([]byte(f.standard), &v.Default); err != nil {
					return nil, fmt.Errorf("default of %s: %w", f.name, err)
				}
			}
			p = v.NewRef()
		}
		s.Properties[f.name] = p
		if f.required { // of a reply the client may select fields, so none is there for certain
			s.Required = append(s.Required, f.name)
		}
	}
	return ref, nil
}

// schemaName is the name of a struct in the document: that of a reply ends with Response, as the generators of Pulp's
// clients know them.
func schemaName(t reflect.Type) string {
	name := t.Name()
	if _, inner, ok := strings.Cut(name, "["); ok {
		inner = strings.TrimSuffix(inner, "]")
		inner = inner[strings.LastIndexByte(inner, '.')+1:]
		return "Paginated" + named(inner) + "List"
	}
	return named(name)
}

func named(name string) string {
	name = strings.ToUpper(name[:1]) + name[1:]
	if base, ok := strings.CutSuffix(name, "Reply"); ok {
		return base + "Response"
	}
	return strings.TrimSuffix(name, "Body")
}
