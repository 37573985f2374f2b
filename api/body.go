package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pithworks/pith/internal/filter"
)

// maxBody is how many bytes a body may have.
const maxBody = 1 << 20

// values of a body, by the names of its fields; form tells that they are texts, as an HTML form has them.
type values struct {
	json map[string]json.RawMessage
	form url.Values
}

// readBody reads a body whole.
func readBody(r *http.Request) (values, error) {
	data, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return values{}, detail(http.StatusRequestEntityTooLarge, fmt.Sprintf("The body has more than %d bytes.", maxBody))
		}
		return values{}, detail(http.StatusBadRequest, "The body ended early.")
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case len(data) == 0:
		return values{}, nil
	case err == nil && kind == "application/json":
		return jsonValues(data)
	case err == nil && kind == "application/x-www-form-urlencoded":
		return values{form: readPairs(string(data))}, nil
	case err == nil && kind == "multipart/form-data":
		return multipartValues(data, params["boundary"])
	}
	return values{}, detail(http.StatusUnsupportedMediaType, `Unsupported media type "`+r.Header.Get("Content-Type")+`" in request.`)
}

// multipartValues reads the parts of a form. None is a file: those are what no operation has asked for.
func multipartValues(data []byte, boundary string) (values, error) {
	if boundary == "" {
		return values{}, detail(http.StatusBadRequest, "Multipart form parse error - Invalid boundary in multipart: None")
	}
	form, wrong := url.Values{}, FieldErrors{}
	for parts := multipart.NewReader(bytes.NewReader(data), boundary); ; {
		part, err := parts.NextPart()
		ended := errors.Is(err, io.EOF) && bytes.Contains(data, []byte("--"+boundary+"--"))
		switch {
		case ended && len(wrong) > 0:
			return values{}, wrong
		case ended:
			return values{form: form}, nil
		case err != nil:
			return values{}, detail(http.StatusBadRequest, "Multipart form parse error - "+err.Error())
		}
		text, err := io.ReadAll(part)
		if err != nil {
			return values{}, detail(http.StatusBadRequest, "Multipart form parse error - "+err.Error())
		}
		if part.FileName() != "" {
			wrong[part.FormName()] = []string{"A file is not expected here."}
		}
		form.Add(part.FormName(), strings.ToValidUTF8(string(text), "\uFFFD"))
	}
}

// readPairs reads the pairs of a query or a form as Django does: only & separates them, none is left out, and a percent sign that
// begins no escape is one.
func readPairs(text string) url.Values {
	out := url.Values{}
	for pair := range strings.SplitSeq(text, "&") {
		if pair != "" {
			name, value, _ := strings.Cut(pair, "=")
			name = unescaped(name)
			out[name] = append(out[name], unescaped(value))
		}
	}
	return out
}

// unescaped is a name or a value of a pair, without what is not UTF-8.
func unescaped(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '+':
			out.WriteByte(' ')
		case '%':
			if escape, err := url.PathUnescape(text[i:min(i+3, len(text))]); err == nil {
				out.WriteString(escape)
				i += 2
				continue
			}
			fallthrough
		default:
			out.WriteByte(c)
		}
	}
	return strings.ToValidUTF8(out.String(), "\uFFFD")
}

func jsonValues(data []byte) (values, error) {
	if !utf8.Valid(data) {
		return values{}, detail(http.StatusBadRequest, "JSON parse error - the body is not UTF-8")
	}
	if !json.Valid(data) {
		err := json.Unmarshal(data, new(any))
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return values{}, detail(http.StatusBadRequest, fmt.Sprintf("JSON parse error - %v: byte %d", syntax, syntax.Offset))
		}
		return values{}, detail(http.StatusBadRequest, fmt.Sprintf("JSON parse error - %v", err))
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(data, &out); err != nil || out == nil {
		return values{}, FieldErrors{NonField: []string{"Invalid data. Expected a dictionary, but got " + pythonType(data) + "."}}
	}
	return values{json: out}, nil
}

// pythonType is what Pulp calls a value of JSON.
func pythonType(data json.RawMessage) string {
	switch c := bytes.TrimSpace(data)[0]; {
	case c == '{':
		return "dict"
	case c == '[':
		return "list"
	case c == '"':
		return "str"
	case c == 't' || c == 'f':
		return "bool"
	case c == 'n':
		return "NoneType"
	case bytes.ContainsAny(data, ".eE"):
		return "float"
	}
	return "int"
}

// decode reads a body of a type from values, or answers FieldErrors.
func decode(t reflect.Type, in values) (any, error) {
	out, wrong := reflect.New(t), FieldErrors{}
	known := map[string]bool{}
	for _, f := range fieldsOf(t) {
		known[f.name] = true
		raw, ok := in.json[f.name]
		if in.form != nil {
			raw, ok = formValue(f, in.form)
		}
		if !ok {
			if f.required {
				wrong.Add(f.name, "This field is required.")
			}
			continue
		}
		if err := f.set(out.Elem().FieldByIndex(f.index), raw); err != nil {
			wrong[f.name] = err.message
		}
	}
	if _, ok := reflect.TypeAssert[lenient](out); !ok {
		for name := range in.json {
			if !known[name] {
				wrong.Add(name, "Unexpected field")
			}
		}
		for name := range in.form {
			if !known[name] {
				wrong.Add(name, "Unexpected field")
			}
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return out.Interface(), nil
}

// formValue is a form's field as JSON: a text, or JSON where the type is neither text nor list.
func formValue(f field, form url.Values) (json.RawMessage, bool) {
	list, ok := form[f.name]
	if !ok || len(list) == 0 {
		return nil, false
	}
	t := f.typ
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var v any = list[len(list)-1]
	switch {
	case t == reflect.TypeFor[json.RawMessage]() || t.Kind() == reflect.Map:
		if json.Valid([]byte(list[0])) {
			return json.RawMessage(list[0]), true
		}
	case t.Kind() == reflect.Slice:
		if s := strings.TrimSpace(list[0]); len(list) == 1 && strings.HasPrefix(s, "[") && json.Valid([]byte(s)) {
			return json.RawMessage(s), true
		}
		v = list
	case list[len(list)-1] == "" && (f.null && !f.required || t.Kind() != reflect.String):
		return nil, false
	}
	raw, err := json.Marshal(v)
	return raw, err == nil
}

// fieldError is what is wrong with a field: a list of texts, or such lists by the places of a list or the keys of a map.
type fieldError struct{ message any }

func wrong(format string, args ...any) *fieldError {
	return &fieldError{[]string{fmt.Sprintf(format, args...)}}
}

var null = []byte("null")

// set sets a field of a struct from JSON.
func (f field) set(to reflect.Value, raw json.RawMessage) *fieldError {
	if to.Kind() == reflect.Pointer {
		if bytes.Equal(raw, null) && f.null {
			if to.Type().Elem().Kind() == reflect.Pointer { // to one that is null
				to.Set(reflect.New(to.Type().Elem()))
			}
			return nil
		}
		for to.Kind() == reflect.Pointer {
			to.Set(reflect.New(to.Type().Elem()))
			to = to.Elem()
		}
	}
	if to.Type() == reflect.TypeFor[json.RawMessage]() {
		if hasZero(raw) {
			return wrong("Null characters are not allowed.")
		}
		to.SetBytes(raw)
		return nil
	}
	if bytes.Equal(raw, null) {
		return wrong("This field may not be null.")
	}
	if to.Type() == timeType {
		return setTime(to, raw)
	}
	switch to.Kind() {
	case reflect.String:
		return f.setText(to, raw)
	case reflect.Bool:
		return setBool(to, raw)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
		if err != nil {
			return wrong("A valid integer is required.")
		}
		to.SetInt(n)
		return nil
	case reflect.Float64:
		return setFloat(to, raw)
	case reflect.Slice:
		return f.setList(to, raw)
	case reflect.Map:
		return f.setMap(to, raw)
	default:
		panic("api: a body has a field of the type " + to.Type().String()) // settable refuses it
	}
}

// bodyType tells why a type cannot be that of bodies.
func bodyType(t reflect.Type) error {
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("a body is a struct, not a %s", t)
	}
	for _, f := range fieldsOf(t) {
		if !settable(f.typ) {
			return fmt.Errorf("the field %s of %s: bodies have no fields of the type %s", f.name, t, f.typ)
		}
	}
	return nil
}

// settable reports whether the field of a body can be of a type.
func settable(t reflect.Type) bool {
	if t == timeType || t == reflect.TypeFor[json.RawMessage]() {
		return true
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		return true
	case reflect.Pointer, reflect.Slice:
		return settable(t.Elem())
	case reflect.Map:
		return t.Key().Kind() == reflect.String && settable(t.Elem())
	default:
		return false
	}
}

// hasZero reports whether JSON has a text with a zero byte, which PostgreSQL cannot keep.
func hasZero(raw json.RawMessage) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		// What follows a backslash belongs to it, be it a backslash itself.
		if i++; bytes.HasPrefix(raw[i:], []byte("u0000")) {
			return true
		}
	}
	return false
}

func (f field) setText(to reflect.Value, raw json.RawMessage) *fieldError {
	var text string
	switch pythonType(raw) {
	case "str":
		if json.Unmarshal(raw, &text) != nil {
			return wrong("Not a valid string.")
		}
	case "int", "float":
		text = string(raw)
	default:
		return wrong("Not a valid string.")
	}
	if possible := choices(to.Type()); possible != nil {
		if !slices.Contains(possible, text) {
			return wrong("%s", `"`+text+`" is not a valid choice.`)
		}
		to.SetString(text)
		return nil
	}
	if !f.blank {
		text = strings.TrimSpace(text)
	}
	switch {
	case strings.ContainsRune(text, 0):
		return wrong("Null characters are not allowed.")
	case text == "" && !f.blank:
		return wrong("This field may not be blank.")
	case f.most > 0 && utf8.RuneCountInString(text) > f.most:
		return wrong("Ensure this field has no more than %d characters.", f.most)
	}
	to.SetString(text)
	if checked, ok := reflect.TypeAssert[interface{ Problem() string }](to); ok {
		if problem := checked.Problem(); problem != "" {
			return wrong("%s", problem)
		}
	}
	return nil
}

func setBool(to reflect.Value, raw json.RawMessage) *fieldError {
	switch strings.ToLower(strings.Trim(string(raw), `"`)) {
	case "true", "t", "1", "yes", "y", "on":
		to.SetBool(true)
	case "false", "f", "0", "no", "n", "off":
		to.SetBool(false)
	default:
		return wrong("Must be a valid boolean.")
	}
	return nil
}

func setFloat(to reflect.Value, raw json.RawMessage) *fieldError {
	text := strings.TrimSpace(strings.Trim(string(raw), `"`))
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || strings.Trim(text, "0123456789.eE+-") != "" { // as NaN is
		return wrong("A valid number is required.")
	}
	to.SetFloat(n)
	return nil
}

func setTime(to reflect.Value, raw json.RawMessage) *fieldError {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		if t, err := filter.ParseTime(text); err == nil {
			to.Set(reflect.ValueOf(Time{t}))
			return nil
		}
	}
	return wrong("Datetime has wrong format. Use one of these formats instead: YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z].")
}

func (f field) setList(to reflect.Value, raw json.RawMessage) *fieldError {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return wrong("Expected a list of items but got type %q.", pythonType(raw))
	}
	out, bad := reflect.MakeSlice(to.Type(), len(list), len(list)), map[string]any{}
	for i, item := range list {
		err := f.set(out.Index(i), item)
		if err != nil && choices(to.Type().Elem()) != nil { // Pulp tells of the first one that is none, and not where
			return err
		}
		if err != nil {
			bad[strconv.Itoa(i)] = err.message
		}
	}
	if len(bad) > 0 {
		return &fieldError{bad}
	}
	to.Set(out)
	return nil
}

// setMap sets a map by texts. Its values are as they come, null if they are pointers.
func (f field) setMap(to reflect.Value, raw json.RawMessage) *fieldError {
	var in map[string]json.RawMessage
	if pythonType(raw) != "dict" || json.Unmarshal(raw, &in) != nil {
		return wrong("Expected a dictionary of items but got type %q.", pythonType(raw))
	}
	element := to.Type().Elem()
	f.blank, f.null = true, element.Kind() == reflect.Pointer
	out, bad := reflect.MakeMapWithSize(to.Type(), len(in)), map[string]any{}
	for name, item := range in {
		value := reflect.New(element).Elem()
		err := f.set(value, item)
		if strings.ContainsRune(name, 0) {
			err = wrong("Null characters are not allowed.")
		}
		if err != nil {
			bad[name] = err.message
			continue
		}
		out.SetMapIndex(reflect.ValueOf(name).Convert(to.Type().Key()), value)
	}
	if len(bad) > 0 {
		return &fieldError{bad}
	}
	if labels, ok := reflect.TypeAssert[Labels](out); ok {
		if wrong := labels.clean(); wrong != nil {
			return &fieldError{wrong}
		}
	}
	to.Set(out)
	return nil
}
