package worker

import (
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }
