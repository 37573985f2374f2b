package pinning

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/wasilibs/go-pgquery/parser"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxDepth bounds how deep the tree of a text may be, in the unit of depth.
//
// The parser is PostgreSQL's, compiled to WebAssembly with a small stack and no guard
// below it. A tree that is too deep (measured: from 190 subqueries, 400 calls or 540
// operators within each other) overwrites the parser's memory: it then answers wrongly,
// traps or hangs, for this text and for all that follow.
const maxDepth = 200

// maxRepeated bounds the lexemes that stand in a tree again and again: what columns are
// set to, UPDATE t SET (a, b) = (1, 2), stands there once for each of them. It leaves
// room for 150 columns, each with its parameter.
const maxRepeated = 4 * MaxText

// maxOperators bounds the sum of the squares of the lengths of a text's runs of
// operatorBytes. Of a run like +++ or /*/* the scanner keeps a character or two, and
// reads the rest again for the next ones.
const maxOperators = 1 << 20

// errDeep is the error for a text over one of these bounds.
var errDeep = errors.New("too deep or too large to be parsed")

// parsing is held by who uses the parser. The parser would make a further instance of
// itself for each concurrent call, at seconds and tens of megabytes apiece.
var parsing sync.Mutex

// parse has a text parsed into JSON by one of the parser's functions.
func parse(text string, by func(string) (string, error)) (answer string, err error) {
	if strings.IndexByte(text, 0) >= 0 {
		return "", errors.New("parse statement: it holds a zero byte") // the parser would stop there
	}
	parsing.Lock()
	defer parsing.Unlock()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("parse statement: %v", p)
		}
	}()
	if err := bounded(text); err != nil {
		return "", fmt.Errorf("parse statement: %w", err)
	}
	if answer, err = by(text); err != nil {
		return "", fmt.Errorf("parse statement: %w", err)
	}
	return answer, nil
}

// A lexeme is one of SQL's. Comments are lexemes, space is not.
type lexeme struct {
	start, end int // in the text, in bytes
	keyword    int // its kind in the grammar, 0 if it is none
}

// scan splits a text as PostgreSQL does. It is called with parsing held.
func scan(text string) ([]lexeme, error) {
	answer, err := parser.ScanToProtobuf(text)
	if err != nil {
		return nil, err
	}
	var lexemes []lexeme
	err = fields(answer, func(number int, value []byte, _ int) error {
		if number != 2 { // tokens
			return nil
		}
		var l lexeme
		err := fields(value, func(number int, _ []byte, n int) error {
			switch number {
			case 1:
				l.start = n
			case 2:
				l.end = n
			case 5:
				l.keyword = n
			}
			return nil
		})
		if l.start < 0 || l.start > l.end || l.end > len(text) {
			return errors.New("the parser names a place out of the text")
		}
		lexemes = append(lexemes, l)
		return err
	})
	return lexemes, err
}

// fields calls f for each field of a protobuf message: with the bytes of a field that
// has a length, with the number of one that is a varint.
func fields(message []byte, f func(number int, value []byte, n int) error) error {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var value []byte
		var n uint64
		switch kind {
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(message)
		default:
			size = protowire.ConsumeFieldValue(number, kind, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if err := f(int(number), value, int(n)); err != nil {
			return err
		}
	}
	return nil
}

// bracketDepth is what a bracket counts in depth: a subquery adds several nodes.
const bracketDepth = 4

// flat are the keywords that put no node above another one of their kind. Those of a
// row of AND or OR stand in one list, the others once in each SELECT; and a further
// SELECT takes brackets or a UNION, which count.
var flat = map[string]bool{
	"and": true, "or": true, "as": true, "select": true, "from": true, "where": true, "group": true, "order": true,
	"by": true, "having": true, "limit": true, "offset": true, "insert": true, "into": true, "update": true,
	"set": true, "delete": true, "values": true, "returning": true, "on": true, "using": true, "with": true,
	"when": true, "then": true, "else": true, "end": true, "null": true, "true": true, "false": true,
	"asc": true, "desc": true, "distinct": true, "all": true,
}

// bounded returns an error if a text takes the parser more than it has, in stack, in
// memory or in time. It is called with parsing held.
func bounded(text string) error {
	if operators(text) > maxOperators {
		return errDeep
	}
	lexemes, err := scan(text)
	if err != nil {
		return err
	}
	if depth, repeated := measure(text, lexemes); depth > maxDepth || repeated > maxRepeated {
		return errDeep
	}
	return nil
}

// measure returns two upper bounds for a text's tree.
//
// The one is its depth: on the way down to any of its leaves, the brackets, operators
// and keywords that can each put a node above what follows or precedes them. What
// commas and semicolons separate stands side by side. The bound of what stands between
// two of them is the number of its operators and keywords, and the largest of its
// brackets. Set operations and joins go on after a comma.
//
// The other is the number of lexemes that it repeats, each as often as it does. A row
// that columns are set to ends at a comma, a semicolon or the end of its brackets.
func measure(text string, lexemes []lexeme) (depth, repeated int) {
	stack := []level{{outside: 1, times: 1}}
	var last string // the lexeme before
	columns := 1    // what the brackets hold that were closed last, if they may be columns to set
	leave := func() {
		most := stack[len(stack)-1].close()
		stack = stack[:len(stack)-1]
		outer := &stack[len(stack)-1]
		outer.inner = max(outer.inner, most+bracketDepth)
	}
	for _, l := range lexemes {
		here := &stack[len(stack)-1]
		if here.times > 1 {
			repeated += here.times
		}
		word := strings.ToLower(text[l.start:l.end])
		switch word {
		case "(", "[":
			stack = append(stack, level{outside: here.times, times: here.times, columns: last == "set" || last == ","})
		case ")", "]":
			if columns = 1; here.columns {
				columns = here.commas + 1
			}
			if len(stack) > 1 { // else it is not in the grammar
				leave()
			}
		case ",":
			here.comma()
			here.commas++
		case ";":
			here.close()
		case "union", "intersect", "except", "join":
			here.sets++
		default:
			if l.keyword != 0 && !flat[word] || operator(word) {
				here.chain++
			}
			if word == "=" && last == ")" {
				here.times = min(here.times*columns, maxRepeated+1)
			}
		}
		if !comment(word) {
			last = word
		}
	}
	for len(stack) > 1 {
		leave()
	}
	return stack[0].close(), repeated
}

// A level is what stands between two brackets.
type level struct {
	chain int // operators and keywords since the last comma
	inner int // the deepest brackets since then
	most  int // the deepest of what commas separate, since the last semicolon
	sets  int // set operations and joins since then
	done  int // the deepest of what semicolons separate

	outside int // how often the tree has these brackets
	times   int // how often it has what stands here

	columns bool // it may be the columns that are set to one row
	commas  int
}

func (l *level) comma() {
	l.most = max(l.most, l.chain+l.inner)
	l.chain, l.inner = 0, 0
	l.times = l.outside
}

// close ends a statement, and returns the depth of the deepest one.
func (l *level) close() int {
	l.comma()
	l.done = max(l.done, l.most+l.sets)
	l.most, l.sets = 0, 0
	return l.done
}

// operatorBytes are what operators are made of.
const operatorBytes = "+-*/<>=~!@#%^&|`?"

// operator tells whether a lexeme is an operator, or one that acts like it.
func operator(word string) bool {
	return word != "" && strings.IndexByte(operatorBytes+":", word[0]) >= 0 && !comment(word)
}

// operators returns the sum of the squared lengths of a text's runs of operatorBytes,
// wherever they stand.
func operators(text string) (sum int) {
	run := 0
	for i := range len(text) {
		if strings.IndexByte(operatorBytes, text[i]) < 0 {
			run = 0
			continue
		}
		sum += 2*run + 1 // what the square grows by
		run++
	}
	return sum
}

func comment(word string) bool {
	return strings.HasPrefix(word, "--") || strings.HasPrefix(word, "/*")
}

// shallow returns an error if a text, of whatever grammar, nests too deep.
func shallow(text string) error {
	parsing.Lock()
	defer parsing.Unlock()
	return bounded(text)
}

// splitAssignment parts PL/pgSQL's target := expression.
func splitAssignment(text string) (target, value string, err error) {
	parsing.Lock()
	defer parsing.Unlock()
	lexemes, err := scan(text)
	if err != nil {
		return "", "", err
	}
	brackets := 0
	for _, l := range lexemes {
		switch text[l.start:l.end] {
		case "(", "[":
			brackets++
		case ")", "]":
			brackets--
		case ":=", "=":
			if brackets == 0 && strings.TrimSpace(text[l.end:]) != "" {
				return text[:l.start], text[l.end:], nil
			}
		}
	}
	return "", "", fmt.Errorf("no assignment: %s", text)
}
