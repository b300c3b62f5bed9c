-- The ticket clock of a shared quota. It repeats `_tickets.py` line by line; a test checks that both give the same answers.
--
-- KEYS: the state, the members, and how many requests wait in each member.
-- ARGV: a verb ("lease", "amend", "look" or "reset"), the time in seconds (empty for the server's own), the member, and
-- numbers separated by spaces.
local AHEAD, FORGET, MOST_VACANT, MOST_QUEUE, SPAN, ROUNDING, SET_BACK = 0.25, 10.0, 64, 60.0, 10.0,
  1e-6, 0.1
local KEPT = 90000  -- Seconds after the last use: a group that starts warm within a day needs the rate.

-- The state of a share that was never used, or was lost.
local function fresh(now)
  local epoch = math.floor(now * 1000000)
  return {epoch = epoch, version = epoch, last = now, next = now, empty = now, written = now, began = -1,
    owner_seen = -1, paused = -1, refused = -1, quota = 0, burst = 0, max_cost = 0, cost_rate = 0, rate = 0,
    depth = 0, span = 0, used = 0, before = 0, memory = "", vacant = {}}
end

-- Restore a lost state from what the first member to ask knows.
local function go_on(s, known, now)
  s.epoch = known.epoch
  if known.pause > 0 then s.paused = now + known.pause end
  s.next = math.max(now, now + math.min(known.next, MOST_QUEUE), s.paused)
end

-- Adopt the quota of the member that started last, as long as such a member is alive.
local function agree(s, ask, now)
  local same = ask.rate == s.quota and ask.burst == s.burst and ask.max_cost == s.max_cost
    and ask.cost_rate == s.cost_rate
  if ask.started > s.began or s.owner_seen <= now - FORGET then
    if not same then
      s.quota, s.rate, s.burst, s.depth = ask.rate, ask.rate, ask.burst, ask.burst
      s.max_cost, s.cost_rate, s.memory, s.version = ask.max_cost, ask.cost_rate, "", s.version + 1
    end
    s.began, s.owner_seen = ask.started, now
  elseif same and ask.started == s.began then
    s.owner_seen = now
  end
end

-- Move the places that are still to come when the rate changes.
local function pace(s, rate, now)
  local start, ratio = math.max(now, s.paused), s.rate / rate
  for number, place in ipairs(s.vacant) do
    if place > start then s.vacant[number] = start + (place - start) * ratio end
  end
  if s.next > start then s.next = start + (s.next - start) * ratio end
end

-- Pause all members after a 429.
local function refuse(s, epoch, till, now)
  if epoch ~= s.epoch and till <= s.paused then return end
  s.epoch, s.refused, s.paused = s.epoch + 1, now, math.max(s.paused, till)
  s.next, s.vacant = math.max(now, s.paused), {}
end

-- Keep a returned place for the next member that asks.
local function take_back(s, place, spacing, now)
  if place <= now then
    if s.next <= now then s.next = s.next - spacing end
  elseif place < s.next and #s.vacant < MOST_VACANT then
    table.insert(s.vacant, place)
    table.sort(s.vacant)
  end
end

-- How many of the permits have enough units of cost when due, and when the first may be used.
local function pay(s, costs, count, first, gap)
  local per_unit, full = 1.0 / s.cost_rate, s.max_cost / s.cost_rate
  for number = 0, count - 1 do
    local cost = costs[number + 1] or 0
    local due = first + number * gap
    local paid = due
    if cost > 0 then paid = s.empty + math.min(cost, s.max_cost) * per_unit end
    if paid > due + 1e-9 then
      if number > 0 then return number, first end
      s.empty = math.max(s.empty, paid - full) + cost * per_unit
      return 1, paid
    end
    s.empty = math.max(s.empty, due - full) + cost * per_unit
  end
  return count, first
end

-- How many permits to grant, seconds until the first, and seconds between them.
local function grant(s, ask, count, spacing, now)
  local earliest = math.max(now - (s.depth - 1.0) * spacing, s.paused)
  local vacant = #s.vacant > 0 and s.vacant[1] < s.next
  local start = vacant and table.remove(s.vacant, 1) or math.max(s.next, earliest)
  local gap = spacing
  if vacant then
    count = 1
  elseif start <= now then
    count, gap = math.min(count, math.floor((now - start) / spacing + ROUNDING) + 1), 0
  end
  local first = math.max(start, now)
  if s.max_cost > 0 then
    local paid
    count, paid = pay(s, ask.costs, count, first, gap)
    if paid > first then
      if not vacant then s.next = math.max(start, paid - (s.depth - 1.0) * spacing) + spacing end
      return 1, paid - now, spacing
    end
  end
  if not vacant then s.next = start + count * spacing end
  return count, first - now, gap
end

-- One step of the clock for one member.
local function lease(s, ask, members, now, is_lost)
  agree(s, ask, now)
  if is_lost and ask.known.epoch >= 0 then go_on(s, ask.known, now) end
  if ask.refused >= 0 then refuse(s, ask.refused, now + ask.pause, now) end
  if ask.settle ~= 0 and s.cost_rate ~= 0 then s.empty = s.empty + ask.settle / s.cost_rate end
  local spacing = 1.0 / s.rate
  for _, seconds in ipairs(ask.back) do take_back(s, now + seconds, spacing, now) end
  while #s.vacant > 0 and s.vacant[1] <= now do table.remove(s.vacant, 1) end
  local count, wait, gap = 0, 0, spacing
  if ask.want > 0 then
    local share = math.floor(s.rate * AHEAD / math.max(members, ask.known.members) + ROUNDING)
    count, wait, gap = grant(s, ask, math.min(ask.want, math.max(1, share)), spacing, now)
    local span = math.floor(now / SPAN)
    if span ~= s.span then
      s.before = span == s.span + 1 and s.used or 0
      s.span, s.used = span, 0
    end
    s.used = s.used + count
  end
  return count, wait, gap, math.max(0, s.paused - now)
end

-- STATE is one packed string, MEMBERS a sorted set scored by when each was last seen, WAITING a hash.
local STATE, MEMBERS, WAITING = KEYS[1], KEYS[2], KEYS[3]

-- The time of this step, in seconds.
local function instant(given)
  if given ~= "" then return tonumber(given) end
  local time = redis.call("TIME")
  return time[1] + time[2] / 1e6
end

-- The stored state; nil if there is none, or if it is not one of ours.
local function load(now)
  local packed = redis.call("GET", STATE)
  if not packed then return nil end
  local good, state = pcall(cmsgpack.unpack, packed)
  if not good or type(state) ~= "table" then return nil end
  for name, value in pairs(fresh(now)) do
    if type(state[name]) ~= type(value) then return nil end
  end
  return state
end

-- Store the state. All keys expire KEPT seconds after the share falls idle.
local function save(s, now)
  local seconds = string.format("%d", KEPT + math.max(0, math.min(1e8, math.max(s.paused, s.next) - now)))
  redis.call("SET", STATE, cmsgpack.pack(s), "EX", seconds)
  redis.call("EXPIRE", MEMBERS, seconds)
  redis.call("EXPIRE", WAITING, seconds)
end

-- Advance the state's time. If the clock was set back, continue as if no time had passed since the last step.
local function step_to(s, now)
  local back = s.last - now
  if back > SET_BACK then
    s.last, s.next, s.empty, s.owner_seen = now, s.next - back, s.empty - back, s.owner_seen - back
    s.paused, s.written = s.paused - back, s.written - back
    if s.refused >= 0 then s.refused = math.max(0, s.refused - back) end
    for number, place in ipairs(s.vacant) do s.vacant[number] = place - back end
    local seen = redis.call("ZRANGEBYSCORE", MEMBERS, "-inf", "+inf", "WITHSCORES")
    for number = 1, #seen, 2 do
      redis.call("ZADD", MEMBERS, string.format("%.17g", tonumber(seen[number + 1]) - back), seen[number])
    end
  end
  s.last = math.max(now, s.last)
  return s.last
end

-- Forget silent members, and count the rest.
local function alive(now)
  local gone = redis.call("ZRANGEBYSCORE", MEMBERS, "-inf", string.format("%.17g", now - FORGET))
  if #gone > 0 then
    redis.call("ZREM", MEMBERS, unpack(gone))
    redis.call("HDEL", WAITING, unpack(gone))
  end
  return redis.call("ZCARD", MEMBERS)
end

-- Parse numbers separated by spaces.
local function numbers(text)
  local found = {}
  for word in string.gmatch(text, "%S+") do found[#found + 1] = tonumber(word) end
  return found
end

-- Format numbers so that no digit is lost.
local function words(...)
  local found = {...}
  for place, value in ipairs(found) do found[place] = string.format("%.17g", value) end
  return table.concat(found, " ")
end

local now = instant(ARGV[2])
local state = load(now)

if ARGV[1] == "lease" then
  local n = numbers(ARGV[4])
  local ask = {rate = n[1], burst = n[2], started = n[3], want = n[4], waiting = n[5], settle = n[6],
    max_cost = n[7], cost_rate = n[8], refused = n[9], pause = n[10],
    known = {epoch = n[11], next = n[12], pause = n[13], members = n[14]}, costs = numbers(ARGV[5]),
    back = numbers(ARGV[6])}
  local is_lost = not state
  state = state or fresh(now)
  now = step_to(state, now)
  redis.call("ZADD", MEMBERS, string.format("%.17g", now), ARGV[3])
  redis.call("HSET", WAITING, ARGV[3], string.format("%d", ask.waiting))
  local members = alive(now)
  local count, wait, gap, pause = lease(state, ask, members, now, is_lost)
  save(state, now)
  return {words(count, wait, gap, pause, state.rate, state.epoch, members, state.quota, state.burst, state.depth,
    state.version, now - state.written, state.next - now), state.memory}
elseif ARGV[1] == "amend" then
  local n = numbers(ARGV[4])
  if not state or n[1] ~= state.epoch or n[2] ~= state.version then return 0 end
  pace(state, n[3], step_to(state, now))
  state.version, state.rate, state.depth = state.version + 1, n[3], n[4]
  state.memory, state.written = ARGV[5], state.last
  save(state, state.last)
  return 1
end

if ARGV[1] == "reset" then
  if state then
    local anew = fresh(math.max(now, state.last))
    anew.epoch = math.max(anew.epoch, state.epoch + 1)
    anew.version = anew.epoch
    redis.call("DEL", MEMBERS, WAITING)
    save(anew, anew.last)
  end
  return 1
end

-- "look": read only, so that a replica can answer, and the reader does not become a member.
if not state or state.quota == 0 then return {} end
now = math.max(now, state.last)
local least = "(" .. string.format("%.17g", now - FORGET)
local waiting, members = 0, redis.call("ZRANGEBYSCORE", MEMBERS, least, "+inf")
for _, member in ipairs(members) do waiting = waiting + (tonumber(redis.call("HGET", WAITING, member)) or 0) end
local span = math.floor(now / SPAN)
local used, before = 0, 0
if span == state.span then used, before = state.used, state.before end
if span == state.span + 1 then before = state.used end
local lately = (used + before * (1 - (now - span * SPAN) / SPAN)) / SPAN
local refused = state.refused >= 0 and now - state.refused or -1
return {words(#members, state.rate, state.quota, state.burst, lately, waiting, math.max(0, state.next - now),
  math.max(0, state.paused - now), refused, state.epoch)}
