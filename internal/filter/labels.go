package filter

import (
	"encoding/json"
	"regexp"
	"strings"
)

// The keys of labels are those of pulpcore 3.123, whose \w is Python's: the letters and digits of all scripts.
var (
	labelKey  = regexp.MustCompile(`^[\pL\pN_ .-]+$`)
	labelTerm = regexp.MustCompile(`(?s)^(!?)([\pL\pN_ .-]+)(?:(=|!=|~)(.*))?$`)
)

// IsLabelKey reports whether a label may have this key.
func IsLabelKey(text string) bool { return labelKey.MatchString(text) }

// selection is what a client asks of labels.
type selection struct {
	there, absent []string
	is            map[string]string
	isNot, has    labelTexts
	never         bool // a label would have to be two texts at once
}

// labelTexts are keys, and the text that each goes with. A key may come again.
type labelTexts struct{ keys, texts []string }

func (l *labelTexts) add(key, text string) {
	l.keys, l.texts = append(l.keys, key), append(l.texts, text)
}

// escapedComma stands for one that separates nothing. No text of a client has it.
const escapedComma = "\x00"

// labels makes the SQL for a selection of labels, terms of which all must hold:
//
//	key          there is such a label
//	!key         there is none
//	key=value    its value is this text
//	key!=value   it is there, with another text or null
//	key~part     its value contains this text, whatever the case
//
// In a value a backslash before a comma keeps the comma from ending the term. Blanks around a term do not count, all others
// do: keys may have some. Pulp takes no notice of what follows a key that it cannot read; here that is an error.
func (f *Field) labels(b *builder, text string) (string, error) {
	terms, err := split(strings.ReplaceAll(text, `\,`, escapedComma))
	if err != nil {
		return "", err
	}
	s := selection{is: map[string]string{}}
	for _, term := range terms {
		if err := s.add(term); err != nil {
			return "", err
		}
	}
	return s.condition(b, f.Column)
}

// add takes in one more term.
func (s *selection) add(term string) error {
	found := labelTerm.FindStringSubmatch(term)
	if found == nil {
		return ListError("Invalid search term: '" + strings.ReplaceAll(term, escapedComma, `\,`) + "'.")
	}
	not, key, operator, value := found[1], found[2], found[3], strings.ReplaceAll(found[4], escapedComma, ",")
	switch {
	case not != "" && operator != "":
		return ListError("Cannot use an operator with '" + not + key + "'.")
	case not != "":
		s.absent = append(s.absent, key)
	case operator == "=":
		other, ok := s.is[key]
		s.never = s.never || ok && other != value
		s.is[key] = value
	case operator == "!=":
		s.there = append(s.there, key)
		s.isNot.add(key, value)
	case operator == "~":
		s.there = append(s.there, key)
		s.has.add(key, value)
	default:
		s.there = append(s.there, key)
	}
	return nil
}

// condition makes the SQL, whose length does not grow with the terms. An index on the column (USING gin) finds the labels that
// must be there.
func (s *selection) condition(b *builder, column string) (string, error) {
	var all []string
	each := func(l labelTexts, wrong string) {
		if l.keys != nil {
			all = append(all, "NOT EXISTS (SELECT FROM unnest("+b.add(l.keys, "text[]")+", "+b.add(l.texts, "text[]")+
				") AS l (label_key, label_text) WHERE "+wrong+")")
		}
	}
	if len(s.is) > 0 {
		is, err := json.Marshal(s.is)
		if err != nil {
			return "", err
		}
		all = append(all, column+" @> "+b.add(string(is), "jsonb"))
	}
	if s.there != nil {
		all = append(all, column+" ?& "+b.add(s.there, "text[]"))
	}
	if s.absent != nil {
		all = append(all, "NOT ("+column+" ?| "+b.add(s.absent, "text[]")+")")
	}
	each(s.isNot, column+" ->> label_key = label_text")
	each(s.has, "(strpos(upper("+column+" ->> label_key), upper(label_text)) > 0) IS NOT TRUE")
	if s.never {
		all = append(all, "false")
	}
	return "(" + strings.Join(all, " AND ") + ")", nil
}
