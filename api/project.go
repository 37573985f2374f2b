package api

import (
	"bytes"
	"encoding/json"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// selection is which fields of a reply a client wants: all, those of only, or all but those of without.
type selection struct{ only, without []string }

// selected reads fields and exclude_fields.
func selected(query url.Values) selection {
	list := func(name string) (out []string) {
		for _, v := range query[name] {
			for f := range strings.SplitSeq(v, ",") {
				if f = strings.TrimSpace(f); f != "" {
					out = append(out, f)
				}
			}
		}
		return out
	}
	return selection{list("fields"), list("exclude_fields")}
}

func (s selection) all() bool { return len(s.only)+len(s.without) == 0 }

func (s selection) wants(name string) bool {
	return (len(s.only) == 0 || slices.Contains(s.only, name)) && !slices.Contains(s.without, name)
}

// project writes a struct, or each struct of a slice, with the fields that are wanted, in their order.
func (s selection) project(body any) (json.RawMessage, error) {
	v := reflect.Indirect(reflect.ValueOf(body))
	if s.all() {
		return marshal(body)
	}
	var out bytes.Buffer
	if v.Kind() == reflect.Slice {
		out.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				out.WriteByte(',')
			}
			item, err := s.project(v.Index(i).Interface())
			if err != nil {
				return nil, err
			}
			out.Write(item)
		}
		out.WriteByte(']')
		return out.Bytes(), nil
	}
	if v.Kind() != reflect.Struct {
		return marshal(body)
	}
	out.WriteByte('{')
	for _, f := range fieldsOf(v.Type()) {
		if !s.wants(f.name) {
			continue
		}
		value, err := marshal(v.FieldByIndex(f.index).Interface())
		if err != nil {
			return nil, err
		}
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		name, err := marshal(f.name)
		if err != nil {
			return nil, err
		}
		out.Write(name)
		out.WriteByte(':')
		out.Write(value)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// marshal writes JSON with <, > and & as they are.
func marshal(v any) (json.RawMessage, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}
