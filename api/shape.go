package api

import (
	"fmt"
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
//	api:"null"         may be null
//	default:"…"        what a body without it means, as JSON, for the document
//	max:"255"          the most characters of a text
//
// A pointer in a body may be left out, one to a pointer also be null, and in a reply be null. The fields of embedded structs
// are fields of the outer one.
//
// A field of a body is a text, a bool, an int, int64 or float64, a Time, a json.RawMessage, or a list or map by texts of such;
// the values of a map may be null if they are pointers, and Labels are such a map. Types of texts may say by a method Choices
// which are possible, or by a method Problem what is wrong with one, "" for nothing. Replies may have structs as well; their
// numbers with fractions are a Float. New refuses other types.
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

	most int // characters; 0: no limit
}

// choices are the values that a type of texts says are possible, by a method Choices; nil: any are.
func choices(t reflect.Type) []string {
	if t.Kind() != reflect.String {
		return nil
	}
	if c, ok := reflect.TypeAssert[interface{ Choices() []string }](reflect.Zero(t)); ok {
		return c.Choices()
	}
	return nil
}

// lenient bodies ignore fields that they do not know.
type lenient interface{ lenient() }

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

// Float is a number as Pulp writes it: 32.0, not 32.
type Float float64

// MarshalJSON writes the number as Python does.
func (f Float) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(f), 'e', -1, 64)
	_, digits, ok := strings.Cut(text, "e")
	if !ok {
		return nil, fmt.Errorf("%s is no number of JSON", text)
	}
	if exponent, err := strconv.Atoi(digits); err != nil || exponent < -4 || exponent >= 16 {
		return []byte(text), err
	}
	text = strconv.FormatFloat(float64(f), 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return []byte(text), nil
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
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
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
			blank: strings.Contains(options, "blank"), null: strings.Contains(options, "null"),
		})
	}
	shapes.Store(t, list)
	return list
}
