-- +goose Up
CREATE TRIGGER roles_drop AFTER DELETE OR UPDATE OF id ON task_schedule FOR EACH ROW EXECUTE FUNCTION roles_drop('core.taskschedule');

-- +goose Down
DROP TRIGGER roles_drop ON task_schedule;
