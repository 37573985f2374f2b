package api

import (
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A field is one of a body or reply, as its Go struct describes it:
//
//	json:"name"        its name; "-" hides it
//	doc:"…"            a sentence for the document
//	api:"required"     a body must have it
//	api:"secret"       only ever received
//	api:"blank"        may be an empty text; blanks around it stay
//	default:"…"        what a body without it means, as JSON, for the document
//	max:"255"          the most characters of a text
//
// A pointer in a body may be left out, and in a reply be null. The fields of embedded structs are fields of the outer one.
type field struct {
	name     string
	index    []int
	typ      reflect.Type
	doc      string
	standard string // the default
	required bool
	secret   bool
	blank    bool
	null     bool // in a body: may be null
	omitted  bool // in a reply: may be missing
	most     int  // characters; 0: no limit
}

// Choice is a text of which only some values are possible.
type Choice interface {
	~string
	// Choices are the values.
	Choices() []string
}

// choices are those of a type; nil: it is no Choice.
func choices(t reflect.Type) []string {
	if t.Kind() != reflect.String {
		return nil
	}
	if c, ok := reflect.TypeAssert[interface{ Choices() []string }](reflect.Zero(t)); ok {
		return c.Choices()
	}
	return nil
}

// Lenient bodies ignore fields that they do not know.
type Lenient interface{ lenient() }

// IgnoreUnknown makes a body that embeds it ignore fields that it does not know, as some of Pulp's do.
type IgnoreUnknown struct{}

func (IgnoreUnknown) lenient() {}

// Time is a time as Pulp writes it: UTC, with microseconds.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000000Z"

// MarshalJSON writes the time.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(timeLayout) + `"`), nil
}

// timePtr is a Time that may be null.
func timePtr(t *time.Time) *Time {
	if t == nil {
		return nil
	}
	return &Time{*t}
}

var (
	timeType = reflect.TypeFor[Time]()
	shapes   sync.Map // reflect.Type to []field
)

// fieldsOf are the fields of a struct type, in order.
func fieldsOf(t reflect.Type) []field {
	if known, ok := shapes.Load(t); ok {
		return known.([]field)
	}
	var list []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				list = append(list, inner)
			}
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "" || name == "-" {
			continue
		}
		options := f.Tag.Get("api")
		most, err := strconv.Atoi(f.Tag.Get("max"))
		if err != nil {
			most = 0
		}
		list = append(list, field{
			name: name, index: []int{i}, typ: f.Type, doc: f.Tag.Get("doc"), standard: f.Tag.Get("default"), most: most,
			required: strings.Contains(options, "required"), secret: strings.Contains(options, "secret"),
			blank: strings.Contains(options, "blank"), null: strings.Contains(options, "null"), omitted: strings.Contains(rest, "omitempty"),
		})
	}
	shapes.Store(t, list)
	return list
}
