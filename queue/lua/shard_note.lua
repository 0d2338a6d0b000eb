-- Tickets of a bulk job tell each other something: a text under the number of a grain, kept with the job.
-- KEYS 1 a  2 b   ARGV 1 token  2 grain  3 text ('' only look)
-- Returns false if the ticket is not mine, else {grain, text, ...} of all notes.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return false end
if redis.call('EXISTS', KEYS[2]) == 0 then return {} end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'n:' .. ARGV[2], ARGV[3]) end
local all, out = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #all, 2 do
  local grain = string.match(all[i], '^n:(%d+)$')
  if grain then
    out[#out + 1] = grain
    out[#out + 1] = all[i + 1]
  end
end
return out
