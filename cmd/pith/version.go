package main

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/migrate"
)

type versionCmd struct{}

// Run runs the command.
func (versionCmd) Run(s *session) error {
	schema, err := migrate.Newest()
	if err != nil {
		return err
	}
	v := struct {
		Pith   string `json:"pith"`
		Core   string `json:"core"`
		Schema int64  `json:"schema"`
		Go     string `json:"go"`
	}{Core: builtin.Version, Schema: schema}
	v.Pith, v.Go = build()
	return s.print(v, func(w io.Writer) {
		row(w, "pith", v.Pith)
		row(w, "Pulp's core API", v.Core)
		row(w, "schema", fmt.Sprint(v.Schema))
		row(w, "go", v.Go)
	})
}

// build tells what this program was built from, and with which Go.
func build() (version, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "unknown"
	}
	return info.Main.Version, info.GoVersion
}
