package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Error is what is wrong with a call's parameters, for an answer of status 400. Its JSON form is the body:
// Fields, or List if there are none.
type Error struct {
	// Fields has the messages by parameter. Parameters that nobody knows are under "errors".
	Fields map[string][]string
	// List has the messages that go without a parameter's name: see [ListError].
	List []string
}

// ListError is an error of a [Field.Parse] that is reported as a bare list. Pulp does so where it looks at a
// value only after all parameters were found to be well-formed: with hrefs that cannot be resolved.
type ListError string

func (e ListError) Error() string { return string(e) }

func (e *Error) Error() string {
	if len(e.Fields) == 0 {
		return "bad query parameters: " + strings.Join(e.List, " ")
	}
	return "bad query parameters: " + strings.Join(slices.Sorted(maps.Keys(e.Fields)), ", ")
}

// MarshalJSON makes the body of the answer.
func (e *Error) MarshalJSON() ([]byte, error) {
	if len(e.Fields) > 0 {
		return json.Marshal(e.Fields)
	}
	return json.Marshal(e.List)
}

func (e *Error) add(name string, err error) {
	if list, ok := errors.AsType[ListError](err); ok {
		e.List = append(e.List, string(list))
		return
	}
	if e.Fields == nil {
		e.Fields = map[string][]string{}
	}
	e.Fields[name] = append(e.Fields[name], err.Error())
}

func (e *Error) empty() bool { return len(e.Fields) == 0 && len(e.List) == 0 }

// clientError is a message for the client, in Django's words where Django has any.
type clientError string

func (e clientError) Error() string { return string(e) }

const (
	errTime     clientError = "Enter a valid date/time."
	errUUID     clientError = "Enter a valid UUID."
	errNumber   clientError = "Enter a number."
	errBoolean  clientError = "Must be a valid boolean."
	errRegex    clientError = "Enter a valid regular expression."
	errRange    clientError = "Range query expects two values."
	errZeroByte clientError = "Null characters are not allowed."
)

func noChoice(text string) clientError {
	return clientError("Select a valid choice. " + text + " is not one of the available choices.")
}

func tooLong(what string, most int, unit string) clientError {
	return clientError(fmt.Sprintf("%s may have %d %s.", what, most, unit))
}

// errMisdeclared marks the errors that are the author's, not the client's.
var errMisdeclared = errors.New("filter: misdeclared field")
