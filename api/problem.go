package api

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// A ResponseError is a problem that the client is told: the reply to its request.
type ResponseError struct {
	Status int
	Body   any
	Header http.Header
}

// Error is for logs.
func (p *ResponseError) Error() string { return http.StatusText(p.Status) }

// Detail is the body of most problems.
type Detail struct {
	Detail string `json:"detail"`
}

// detail is a problem of one sentence.
func detail(status int, text string) *ResponseError {
	return &ResponseError{Status: status, Body: Detail{text}}
}

var (
	errNotFound = detail(http.StatusNotFound, "Not found.")
	errDenied   = detail(http.StatusForbidden, "You do not have permission to perform this action.")
)

// NotFound is the problem that an object is not there; noun is its model, such as Task.
func NotFound(noun string) error {
	return detail(http.StatusNotFound, "No "+noun+" matches the given query.")
}

// FieldErrors are what is wrong with a body, field by field. What concerns several fields stands under
// "non_field_errors".
//
//nolint:errname // they are several
type FieldErrors map[string]any

// NonField is the key of errors that concern several fields.
const NonField = "non_field_errors"

// Error is for logs.
func (e FieldErrors) Error() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(e)) {
		parts = append(parts, fmt.Sprintf("%s: %v", name, e[name]))
	}
	return strings.Join(parts, "; ")
}

// Add adds a message about a field.
func (e FieldErrors) Add(name, message string) {
	list, _ := e[name].([]string)
	e[name] = append(list, message)
}

// problem is what a client is told of an error; false: nothing, since it is none of its business.
func problem(err error) (*ResponseError, bool) {
	if p, ok := errors.AsType[*ResponseError](err); ok {
		return p, true
	}
	if e, ok := errors.AsType[FieldErrors](err); ok {
		return &ResponseError{Status: http.StatusBadRequest, Body: map[string]any(e)}, true
	}
	return nil, false
}
