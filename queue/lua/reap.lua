-- Takes over from a dead worker: only if its counter still is what was seen (compare and swap), or if
-- it is gone from the list already (what remained then).
-- KEYS 1 hb  2 a  3 land  4 land:hi  5 land:lo  6 in  7 in:hi  8 in:lo  9 redo  10 w:<wid>  11 gone  12 cx,
--      then the slots
-- ARGV 1 wid  2 counter seen, '' for one that is gone  3 most entries  4 now
-- Returns {-1} alive, else {entries moved, entries left}.
local counter = redis.call('HGET', KEYS[1], ARGV[1])
if counter and counter ~= ARGV[2] then return {-1, 0} end
redis.call('HDEL', KEYS[1], ARGV[1]) -- fenced from here on
if counter then redis.call('ZADD', KEYS[11], ARGV[4], ARGV[1]) end

-- Jobs that landed but were never started: back where they came from, no crash counted.
local moved = 0
for i = 1, 3 do
  local entry = redis.call('RPOP', KEYS[2 + i])
  while entry do
    redis.call('RPUSH', KEYS[5 + i], entry)
    moved = moved + 1
    entry = redis.call('RPOP', KEYS[2 + i])
  end
end

local mark = '@' .. ARGV[1]
for i = 13, #KEYS do
  local entry = redis.call('LINDEX', KEYS[i], 0)
  while entry and entry ~= mark do
    redis.call('LPOP', KEYS[i])
    redis.call('RPUSH', KEYS[6 + (i - 13) % 3], entry)
    moved = moved + 1
    entry = redis.call('LINDEX', KEYS[i], 0)
  end
end

-- What it died of, as far as its card knows.
local card = redis.call('HMGET', KEYS[10], 'signal', 'rss_kb', 'card')
local signal, rss_kb = tonumber(card[1] or ''), tonumber(card[2] or '')
if not rss_kb then
  local bytes = string.match(card[3] or '', '"rss_bytes":(%d+)')
  rss_kb = bytes and tonumber(bytes) / 1024
end
local death = (signal and string.format('g%d', signal) or '') .. (rss_kb and string.format('m%d', rss_kb) or '')

-- Every owned one is suspect: one crash more.
local own = redis.call('HRANDFIELD', KEYS[2], tonumber(ARGV[3]), 'WITHVALUES')
for i = 1, #own, 2 do
  redis.call('HDEL', KEYS[2], own[i])
  local entry = own[i + 1]
  local slot, header = string.match(string.sub(entry, 1, 100), '^@(%d+)(.*)$')
  if slot then
    slot = KEYS[13 + tonumber(slot)]
    entry = redis.call('LINDEX', slot, -1) or ''
    redis.call('LTRIM', slot, 0, -3)
    local from = string.match(entry, '^~1,%d+,%d+,%d+,%w*~()')
    entry = header .. (from and string.sub(entry, from) or entry)
  end
  local attempt, crashes, queued, flags, rest = string.match(string.sub(entry, 1, 96), '^~1,(%d+),(%d+),(%d+),(%w*)()~')
  if attempt then
    local ticket = string.match(flags, 't%d+$') or ''
    flags = string.gsub(string.sub(flags, 1, #flags - #ticket), '[gm]%d+', '')
    redis.call('LPUSH', KEYS[9], '~1,' .. attempt .. ',' .. (tonumber(crashes) + 1) .. ',' .. queued .. ',' .. flags .. death ..
               ticket .. string.sub(entry, rest))
  else
    redis.call('LPUSH', KEYS[9], entry)
  end
  moved = moved + 1
end
local left = redis.call('HLEN', KEYS[2])
if left == 0 then redis.call('DEL', KEYS[10]) end

-- While here: cancellations that met no job for a day are forgotten.
local some = redis.call('HRANDFIELD', KEYS[12], 8, 'WITHVALUES')
for i = 1, #some, 2 do
  if tonumber(ARGV[4]) - tonumber(some[i + 1]) > 86400000 then redis.call('HDEL', KEYS[12], some[i]) end
end
return {moved, left}
