package filter

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	// maxExpression bounds the text of q, in bytes, and maxDepth how deep it may nest.
	maxExpression = 4 << 10
	maxDepth      = 32

	// maxComplexity is Pulp's: a term counts 1, and so does an operator, a chain of which counts once.
	maxComplexity = 8
)

// expression makes the SQL for a value of q:
//
//	expression  = conjunction { "OR" conjunction }
//	conjunction = factor { "AND" factor }
//	factor      = "NOT" factor | "(" expression ")" | parameter "=" value
//
// Operators may be in lower case. A value is a bare word or quoted. In quotes a backslash stands for itself
// unless it is before a quote or a backslash, so that a regular expression needs no doubled ones.
func (s *Set) expression(b *builder, text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if len(text) > maxExpression {
		return "", tooLong("A filter expression", maxExpression, "bytes")
	}
	tokens, err := tokenize(text)
	if err != nil {
		return "", err
	}
	p := &parser{set: s, builder: b, text: text, tokens: tokens}
	condition, err := p.or()
	if err == nil && p.tokens[0].kind != end {
		err = p.expected("AND, OR or the end")
	}
	return condition, err
}

// parser makes SQL of the tokens that are left.
type parser struct {
	set     *Set
	builder *builder
	text    string
	tokens  []token

	depth, complexity int
}

func (p *parser) or() (string, error) { return p.chain("OR", p.and) }

func (p *parser) and() (string, error) { return p.chain("AND", p.factor) }

func (p *parser) chain(operator string, operand func() (string, error)) (string, error) {
	first, err := operand()
	if err != nil || !p.keyword(operator) {
		return first, err
	}
	if err := p.count(); err != nil {
		return "", err
	}
	operands := []string{first}
	for p.keyword(operator) {
		p.next()
		next, err := operand()
		if err != nil {
			return "", err
		}
		operands = append(operands, next)
	}
	return "(" + strings.Join(operands, " "+operator+" ") + ")", nil
}

// factor is in every cycle of calls, so it watches the depth.
func (p *parser) factor() (string, error) {
	p.depth++
	defer func() { p.depth-- }()
	switch {
	case p.depth > maxDepth:
		return "", syntaxError(p.text, p.tokens[0].at, "nested too deeply")
	case p.keyword("NOT"):
		p.next()
		operand, err := p.factor()
		if err == nil {
			err = p.count()
		}
		// Not SQL's NOT: Pulp takes away the objects that match, so those stay where a null decides nothing.
		return "(" + operand + ") IS NOT TRUE", err
	case p.tokens[0].kind == '(':
		p.next()
		inner, err := p.or()
		if err == nil && p.tokens[0].kind != ')' {
			err = p.expected("AND, OR or )")
		}
		p.next()
		return inner, err
	}
	return p.term()
}

// term makes the SQL of a comparison. One that asks for nothing matches everything.
func (p *parser) term() (string, error) {
	if p.tokens[0].kind != word || p.keyword("AND") || p.keyword("OR") {
		return "", p.expected("a filter, NOT or (")
	}
	parameter := p.next().text
	if p.tokens[0].kind != '=' {
		return "", p.expected("=")
	}
	p.next()
	if p.tokens[0].kind != word && p.tokens[0].kind != quoted {
		return "", p.expected("a value")
	}
	text := strings.TrimSpace(p.next().text)
	switch parameter {
	case "q":
		return "", clientError("You cannot use 'q' in complex filtering.")
	case "ordering":
		return "", clientError("An ordering filter cannot be used in complex filtering.")
	}
	field, lookup := p.set.find(parameter)
	if field == nil {
		return "", clientError("Filter '" + parameter + "' does not exist.")
	}
	if err := p.count(); err != nil {
		return "", err
	}
	condition, err := field.condition(p.builder, lookup, text)
	switch {
	case errors.Is(err, errMisdeclared):
		return "", err
	case err != nil: // a ListError, too, is now about q
		return "", clientError(parameter + ": " + err.Error())
	case condition == "":
		return "true", nil
	}
	return condition, nil
}

// count takes in one more term or operator.
func (p *parser) count() error {
	if p.complexity++; p.complexity > maxComplexity {
		return clientError("Filter expression exceeds allowed complexity.")
	}
	return nil
}

func (p *parser) keyword(k string) bool {
	return p.tokens[0].kind == word && strings.EqualFold(p.tokens[0].text, k)
}

// next goes on to the next token and returns this one. The end stays.
func (p *parser) next() token {
	t := p.tokens[0]
	if t.kind != end {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) expected(what string) error {
	return syntaxError(p.text, p.tokens[0].at, "expected "+what)
}

func syntaxError(text string, at int, what string) error {
	character := utf8.RuneCountInString(text[:at]) + 1
	return clientError(fmt.Sprintf("Syntax error in expression: %s at character %d.", what, character))
}

type token struct {
	kind byte
	text string
	at   int // in bytes
}

// A token is one of the characters ( ) = or of these kinds.
const (
	end    = 0
	word   = 'w'
	quoted = '"'
)

var (
	tokenForm = regexp.MustCompile(`(?s)^(?:[()=]|([\pL\pN_.:/,+%~*-]+)|"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')`)
	unescape  = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\'`, `'`)
)

// tokenize takes an expression apart; an end comes last.
func tokenize(text string) ([]token, error) {
	var all []token
	for at := 0; ; {
		at = len(text) - len(strings.TrimSpace(text[at:])) // no space is at the end
		if at == len(text) {
			return append(all, token{kind: end, at: at}), nil
		}
		found := tokenForm.FindStringSubmatch(text[at:])
		switch {
		case found == nil && (text[at] == '"' || text[at] == '\''):
			return nil, syntaxError(text, at, "unclosed quote")
		case found == nil:
			return nil, syntaxError(text, at, "unexpected character")
		case found[1] != "":
			all = append(all, token{word, found[1], at})
		case text[at] == '"' || text[at] == '\'':
			all = append(all, token{quoted, unescape.Replace(found[2] + found[3]), at})
		default:
			all = append(all, token{text[at], found[0], at})
		}
		at += len(found[0])
	}
}
