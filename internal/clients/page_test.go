package clients_test

import (
	"bytes"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pithworks/pith/worker"
)

// console finds what a page, or the browser about it, has written to the console.
var console = regexp.MustCompile(`(?m)^.*CONSOLE.*$`)

func TestPageShowsTheOperationsWithoutTheInternet(t *testing.T) {
	t.Parallel()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium here: where there is one, this looks at the page")
	}
	d := deploy(t, worker.Config{})
	dir := t.TempDir()
	look := func(url string, args ...string) result {
		t.Helper()
		r := run(t, dir, nil, chromium, append(args, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
			"--disable-background-networking", "--disable-component-update", "--no-first-run", "--user-data-dir="+filepath.Join(dir, "browser"),
			"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--enable-logging=stderr", "--virtual-time-budget=20000",
			"--window-size=1280,1600", url)...)
		if r.code != 0 {
			t.Fatalf("chromium: status %d\n%s", r.code, r.err)
		}
		// What is fetched elsewhere, or against the page's own policy, would be told here.
		if told := console.FindAllString(r.err, -1); told != nil {
			t.Errorf("the console has %s", strings.Join(told, "\n"))
		}
		return r
	}
	page := d.url + root + "docs/"
	dom := look(page+"#/Tasks", "--dump-dom").out
	for _, want := range []string{`id="operations-tag-Tasks"`, `id="operations-Tasks-tasks_list"`, `id="operations-Tasks-tasks_cancel"`, `id="operations-tag-Users"`} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	shot := filepath.Join(dir, "page.png")
	look(page, "--screenshot="+shot)
	data, err := os.ReadFile(shot)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil || picture.Bounds().Dx() < 1000 {
		t.Errorf("picture of %d bytes, error %v", len(data), err)
	}
}
