package tasking

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Arguments may be secret: they are encrypted at rest, but errors are logged, and stored in plain where a task fails.
// So an error about arguments says where they are wrong, and never what stands there.

// untold says what is wrong with arguments that cannot be encoded or decoded. The errors of encoding/json quote numbers,
// and those of a type's own methods may quote anything, so of these only their types are told.
func untold(err error) string {
	var (
		wrongType   *json.UnmarshalTypeError
		syntax      *json.SyntaxError
		unsupported *json.UnsupportedTypeError
		value       *json.UnsupportedValueError
		method      *json.MarshalerError
	)
	switch {
	case errors.As(err, &wrongType):
		kind, _, _ := strings.Cut(wrongType.Value, " ") // a number follows its kind
		field := ""
		if wrongType.Field != "" {
			field = " for " + wrongType.Field
		}
		return fmt.Sprintf("a JSON %s%s where a %s is needed, at byte %d", kind, field, wrongType.Type, wrongType.Offset)
	case errors.As(err, &syntax):
		return fmt.Sprintf("a syntax error at byte %d", syntax.Offset)
	case errors.As(err, &method):
		return fmt.Sprintf("%s refuses with a %T, which may quote it", method.Type, method.Unwrap())
	case errors.As(err, &unsupported):
		return fmt.Sprintf("JSON has nothing for a %s", unsupported.Type)
	case errors.As(err, &value):
		return fmt.Sprintf("JSON has nothing for this value of a %s", value.Value.Type())
	}
	return fmt.Sprintf("a %T, which may quote them", err)
}

// invalidUTF8 is where a text stops being UTF-8.
func invalidUTF8(text []byte) (at int) {
	for at < len(text) {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		at += size
	}
	return at
}
